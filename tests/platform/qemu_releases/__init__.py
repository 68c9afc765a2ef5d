"""Other releases of QEMU."""
