"""The Python API, as `import ramet` exports it."""
