"""Event loops, threads, fork(2) and notebooks of the programs that use ramet."""
