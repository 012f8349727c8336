"""Benchmarks on an NVIDIA GPU: ``python -m bench.gpu SECTION``; ``bench/on_gpu.sh`` runs them all."""
