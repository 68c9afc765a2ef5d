"""The registry client, against a small registry on loopback that can fail in every way."""
