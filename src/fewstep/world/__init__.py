"""The embedded tiny world: captioned scenes, an oracle that reads them, a tiny pipeline."""

from fewstep.quiet import hush

hush()  # before diffusers
