"""The model and resolution sections of a recipe."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import Field, ValidationError, model_validator

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


Pixels: TypeAlias = tuple[Size, Size]
"""Height and width."""


class ResolutionRecipe(Section):
    """Size of the images, or a list of sizes: every batch has one of them.

    Such as `[[1024, 1024], [768, 1344], [1344, 768]]`. Previews, evaluation and drawing have the
    first one, unless told otherwise; the largest decides the memory.
    """

    height: Size
    """Height in pixels; a multiple of what the model's autoencoder and patches need."""
    width: Size
    """Width in pixels; likewise."""
    others: Annotated[tuple[Pixels, ...], Field(max_length=63)] = ()
    """Further sizes, [height, width] each: all sizes are equally likely to be a batch's."""

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        """A list of sizes is the first one and the others."""
        if isinstance(value, list):
            if not value or not all(isinstance(each, list) and len(each) == 2 for each in value):
                raise ValueError("must be {height: H, width: W}, or sizes: [[H, W], [H, W]]")
            (height, width), *more = value
            value = {"height": height, "width": width, "others": more}
        if isinstance(value, dict) and isinstance(others := value.get("others"), list):
            pairs = (tuple(each) if isinstance(each, list) else each for each in others)
            value = value | {"others": tuple(pairs)}
        return value

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.sizes)) < len(self.sizes):
            raise ValueError("a size is given twice; each is equally likely, so once will do")
        return self

    @property
    def sizes(self) -> tuple[Pixels, ...]:
        """Height and width of all of them, the first one first."""
        return (self.height, self.width), *self.others

    @property
    def largest(self) -> Pixels:
        """Height and width of the one with the most pixels."""
        return max(self.sizes, key=math.prod)
