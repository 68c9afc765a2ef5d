"""The benchmarks: figures, page, floor, and the guard of the ratios."""
