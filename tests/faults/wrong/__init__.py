"""The table of wrong inputs, an area a module."""
