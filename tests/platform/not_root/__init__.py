"""The main job as an ordinary user."""
