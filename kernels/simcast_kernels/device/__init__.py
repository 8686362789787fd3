"""Jitted helpers that the kernels of several ops share; importing this package's modules needs Triton."""
