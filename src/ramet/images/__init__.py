"""The files that a VM boots: kernels, modules, initramfs and the built-in image.

See README.md in this room.
"""
