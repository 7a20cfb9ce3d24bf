"""The embedded tiny world: captioned scenes, an oracle that reads them, a tiny pipeline."""

from fewstep import quiet  # noqa: F401 - first, before diffusers
