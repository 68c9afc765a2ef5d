"""What an instance keeps in files beside its memory. See README.md."""
