"""The embedded tiny world: captioned scenes, an oracle that reads them, a tiny pipeline."""

from fewstep.utils import silence  # noqa: F401 - first, before diffusers
