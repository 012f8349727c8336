"""PTX, as NVRTC makes it of the kernels, parsed and run in NumPy: see README.md."""
