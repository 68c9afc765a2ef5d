"""Examples of README and docs, run as they stand."""
