"""Benchmarks of flashcupy against its peers; README.md says how to run and read them."""
