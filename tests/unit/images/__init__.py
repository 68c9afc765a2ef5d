"""The built-in image, kernels and modules."""
