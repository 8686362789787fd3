"""Triton kernels of SimCast-HPC, each behind one custom operator with a PyTorch twin.

Import an op from its own package, ``from simcast_kernels.weighted_mse import weighted_mse``. Importing needs
torch alone; Triton is loaded by the first call that runs a kernel. Which body a call takes is decided in
:mod:`simcast_kernels.dispatch`.
"""
