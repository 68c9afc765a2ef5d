"""The engine: combines files, processes, VMMs, guests and records; all ordering rules are here."""
