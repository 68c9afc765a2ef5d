"""Versions and releases of VMMs. The contract that each driver fulfils is in `tests/contract`."""
