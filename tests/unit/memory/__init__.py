"""Guest memory as files and processes: capture, deltas, digests, compression, accounting."""
