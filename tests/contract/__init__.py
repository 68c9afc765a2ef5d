"""The contract of drivers, for each driver and kind of guest."""
