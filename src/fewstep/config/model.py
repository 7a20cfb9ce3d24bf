"""The model and resolution sections of a recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError

from fewstep.config.strict import Name, Section, Size, explain
from fewstep.utils.pretrained import LoraFile, Pretrained


class LoraFileRecipe(Section):
    """A LoRA that is fused into the model."""

    path: Name
    """File (.safetensors) or folder, with the names of diffusers, PEFT, kohya or ComfyUI."""
    scale: Annotated[float, Field(ge=-100, le=100)] = 1.0
    """Strength, as other programs call it; 1 as it was trained."""


class ModelRecipe(Section):
    """The pretrained model to distil."""

    path: Name
    """Folder or hub id of a diffusers pipeline, a single-file checkpoint (.safetensors), or
    `package://package/folder`."""
    variant: Name | None = None
    """Variant of the weights files, such as `fp16`; null: the ordinary ones."""
    components: Name | None = None
    """Of a single file: diffusers folder or hub id that the parts it lacks are taken from, such as
    tokenizers."""
    loras: tuple[LoraFileRecipe, ...] = ()
    """LoRAs that are fused into the weights before anything else: the teacher has them, and the
    student starts with them."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the model family's loader, such as `max_sequence_length` (tokens) or `frames`;
    `fewstep models` lists the families."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of frozen weights and of the arithmetic inside the networks. What is trained is
    float32 in any case (but see `memory.trained_dtype`). Use bfloat16 on a GPU."""
    force: bool = False
    """Accept a teacher that seems to be distilled already. Only if that was detected wrongly."""

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """The section that plain values make.

        Raises:
            ConfigError: One line that says what is wrong and where.
        """
        try:
            return cls.model_validate_json(json.dumps(values))
        except ValidationError as error:
            raise explain(error, cls) from error

    @property
    def address(self) -> Pretrained:
        """All that says which weights are meant."""
        loras = tuple(LoraFile(each.path, each.scale) for each in self.loras)
        return Pretrained(self.path, self.variant, self.components, loras)


class ResolutionRecipe(Section):
    """Size of the images."""

    height: Size
    """Height in pixels; a multiple of what the model's autoencoder and patches need."""
    width: Size
    """Width in pixels; likewise."""
