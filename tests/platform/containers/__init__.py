"""Homes that containers, other namespaces and other machines see."""
