"""The one place that says which ramet this is."""

__version__ = "0.1.0"
