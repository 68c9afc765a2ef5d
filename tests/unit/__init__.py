"""Tests of one room each: `tests/unit/ROOM` is for `src/ramet/ROOM`. Few need a VM."""
