"""Container images' layers, read as data: entries of tar archives, file contents in spools, one merged tree.

Nothing is extracted: names, owners, devices and attributes never reach the host's filesystem.
"""
