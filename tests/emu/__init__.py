"""The SIMT emulator: kernels compiled with g++ and run on the CPU, behind the same protocols as a GPU."""
