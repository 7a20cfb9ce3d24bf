"""The embedded tiny world: captioned scenes, an oracle that reads them, a tiny pipeline."""
