"""The Python API: what `import ramet` gives."""
