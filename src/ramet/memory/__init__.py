"""The memory plane: capturing and accounting guest RAM from outside the VMM. See README.md."""
