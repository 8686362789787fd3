"""Roofline estimates of kernels from their compiled code, without a GPU.

``sass_program`` parses SASS; ``sass_values``, ``sass_registers`` and ``sass_execution`` execute the integer part of one
block; ``launch_block`` gives it the arguments of a launch; ``gpu_rates`` holds the published rates; ``launch_estimate``
predicts the time of a launch; ``estimate_table`` sums launches and compares with the committed table.
"""
