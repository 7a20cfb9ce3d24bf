"""Metrics of pictures, one file each, found by name."""
