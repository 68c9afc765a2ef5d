"""Boot snapshots: `run` is a fork of a guest that was booted once, before its entrypoint."""
