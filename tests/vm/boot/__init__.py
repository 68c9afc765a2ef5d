"""Boot: memory sizes, kernels."""
