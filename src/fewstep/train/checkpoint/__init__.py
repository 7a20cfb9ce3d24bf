"""Checkpoints: the files themselves, and when they are written and removed."""
