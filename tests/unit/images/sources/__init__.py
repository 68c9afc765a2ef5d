"""The library of container images."""
