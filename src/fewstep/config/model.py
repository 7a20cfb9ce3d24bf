"""The model and resolution sections of a recipe."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from fewstep.config.strict import Name, Section, Size


class ModelRecipe(Section):
    """The pretrained model to distil."""

    path: Name
    """Folder or hub id of a diffusers pipeline, or `package://package/folder`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the model family's loader, such as `max_sequence_length` (tokens) or `frames`;
    `fewstep models` lists the families."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of frozen weights and of the arithmetic inside the networks. What is trained is
    float32 in any case (but see `memory.trained_dtype`). Use bfloat16 on a GPU."""
    force: bool = False
    """Accept a teacher that seems to be distilled already. Only if that was detected wrongly."""


class ResolutionRecipe(Section):
    """Size of the images."""

    height: Size
    """Height in pixels; a multiple of what the model's autoencoder and patches need."""
    width: Size
    """Width in pixels; likewise."""
