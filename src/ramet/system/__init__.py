"""The machine under ramet: processes, files, devices. See README.md."""
