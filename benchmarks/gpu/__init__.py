"""What the fused operator does on a GPU, measured by `python benchmarks/gpu/measure.py`."""
