"""What is exported, a `Student`, and what it is exported as, a `Format`."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fewstep.config import Recipe
from fewstep.core.schedules import Terminal, few_step_sigmas
from fewstep.models.base import Backbone
from fewstep.models.lora import joined_lora, lora_layers
from fewstep.models.loras import as_adapter
from fewstep.utils.errors import FewstepError
from fewstep.utils.registry import Registry

STEPS = 4
"""Evaluations a picture that an export and its card speak of."""


@dataclass(frozen=True, eq=False)
class Student:
    """A distilled network in memory, and what is known of it.

    Attributes:
        backbone: The model that it belongs to; `net` is in its pretrained network's place.
        net: The network.
        adapter: Name of the LoRA adapter in `net`; None: all of its weights were trained.
        step: Iterations that it was trained for.
        label: Where it came from, such as ``run/step-00000100``.
        folder: The run or the exported folder that it was read from.
        teacher: The teacher's address: a path, ``package://...`` or a repo id.
        fingerprint: `digest_model` of the teacher, where the run noted it.
        size: Height and width in pixels that it was distilled at.
        shift: Static shift of the grid it was distilled on; None is its model's own.
        terminal: Where that grid ends before 0; "model": as its model's own.
        dtype: Name of the torch dtype that it is to be drawn with.
        stored: Name of the torch dtype that a whole network is written in.
        adapter_dtype: Name of the torch dtype that an adapter is written in.
        with_loras: Whether its adapter is written with the recipe's `model.loras` in it.
        options: What the family's loader was given.
        recipe: The run's recipe; None where only an export is left of the run.
    """

    backbone: Backbone
    net: nn.Module
    adapter: str | None
    step: int
    label: str
    folder: Path
    teacher: str
    size: tuple[int, int]
    shift: float | None = None
    terminal: Terminal = "model"
    dtype: str = "float32"
    stored: str = "float32"
    adapter_dtype: str = "float32"
    with_loras: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    recipe: Recipe | None = None
    fingerprint: str | None = None

    @property
    def base_sigmas(self) -> list[float]:
        """Its grid before the shift, without the final 0, Eq. 11."""
        return few_step_sigmas(STEPS)

    @property
    def layers(self) -> dict[str, Tensor]:
        """Weights of its adapter under diffusers' names, right at scale 1.

        Raises:
            FewstepError: A LoRA that is to be in it changes more than linear layers of the network.
        """
        layers = lora_layers(self.net, str(self.adapter))
        if self.with_loras and self.recipe:
            fused = [(each.path, each.scale) for each in self.recipe.model.loras]
            layers = joined_lora(layers, *(as_adapter(self.backbone, *each) for each in fused))
        return {name: x.to(getattr(torch, self.adapter_dtype)) for name, x in layers.items()}

    @property
    def stock_call(self) -> dict[str, Any]:
        """Arguments with which the stock pipeline draws from it, see `Backbone.stock_call`."""
        return self.backbone.stock_call(self.base_sigmas, *self.size)


class Format(ABC):
    """One way to write a student to a folder. A format is one file of `formats`, or a plug-in.

    Attributes:
        name: What `--format` calls it.
        modes: Students that it can hold: "full", and "lora" for networks with an adapter.
        families: Names of the model families that it serves; None: all.
        adapter: Whether what it writes is of no use without the teacher's weights.
        library: What the Hugging Face Hub calls the library that loads it.
    """

    name: ClassVar[str]
    modes: ClassVar[tuple[str, ...]] = ("full", "lora")
    families: ClassVar[tuple[str, ...] | None] = None
    adapter: ClassVar[bool] = False
    library: ClassVar[str] = "diffusers"

    def check(self, mode: str, family: str) -> None:
        """Checks that the format serves a student; no weights are needed for that.

        Args:
            mode: "full" or "lora".
            family: Name of the model family.

        Raises:
            FewstepError: It does not.
        """
        if mode not in self.modes:
            raise FewstepError(
                f"format {self.name}: holds students of mode {' or '.join(self.modes)}, this one "
                f"is {mode}; choose another format",
                code="unsupported",
            )
        if self.families is not None and family not in self.families:
            raise FewstepError(
                f"format {self.name}: serves {', '.join(self.families)}, not {family}; choose "
                "another format",
                code="unsupported",
            )

    @abstractmethod
    def write(self, student: Student, folder: Path) -> None:
        """Writes the student's weights, and all that using them needs, into an empty folder.

        The network may be changed on the way, such as by merging an adapter: it is loaded for this.

        Raises:
            FewstepError: This student cannot be written so.
        """

    @abstractmethod
    def usage(self, student: Student, address: str) -> str:
        """Markdown of the model card's section on how to draw pictures with what was written.

        Args:
            student: The student.
            address: Where users find it: the repo id that it will be published as, or `.`, the
                folder that the card lies in.
        """


def _formats_of(module: Any) -> dict[str, Format]:
    """The formats that a module defines."""
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Format) and not inspect.isabstract(value)
    ]
    return {cls.name: cls() for cls in classes if cls.__module__ == module.__name__}


_FORMATS: Registry[Format | type[Format]] = Registry(
    "export format", "fewstep.formats", "fewstep.export.formats", _formats_of
)


def available() -> list[str]:
    """Names of all export formats, those of plug-ins included."""
    return _FORMATS.available()


def find_format(name: str | None, mode: str) -> Format:
    """The export format of a name; None chooses ``lora`` for a LoRA and ``diffusers`` else.

    Raises:
        FewstepError: There is none of that name.
    """
    member = _FORMATS.get(name or ("lora" if mode == "lora" else "diffusers"))
    return member() if isinstance(member, type) else member
