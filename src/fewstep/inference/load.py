"""What can be sampled: a run's student, a folder that was exported, or any diffusers folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fewstep import models
from fewstep.config import Recipe, StudentRecipe, parse_recipe
from fewstep.config.migrate import migrated
from fewstep.models.base import Backbone
from fewstep.train.checkpoint import store
from fewstep.train.roles import become_student
from fewstep.utils import yaml
from fewstep.utils.errors import FewstepError, unknown
from fewstep.utils.files import read_json
from fewstep.utils.hardware import pick_device
from fewstep.utils.resources import resolve

NOTE = "fewstep.json"
"""File of an exported folder that says how to load it; plain diffusers does not need it."""
LORA = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True, eq=False)
class Model:
    """A network to draw from.

    Attributes:
        backbone: What knows how to ask it.
        net: The network.
        label: Where it came from, for manifests.
        size: Height and width in pixels that it was distilled at, if known.
        shift: Static shift of the grid it was distilled on; None is its model's own.
    """

    backbone: Backbone
    net: nn.Module
    label: str
    size: tuple[int, int] | None = None
    shift: float | None = None


@dataclass(frozen=True, eq=False)
class Student:
    """A run's student: its network, and the checkpoint that it was read from."""

    net: nn.Module
    recipe: StudentRecipe
    path: Path
    step: int


@dataclass(frozen=True, eq=False)
class Run:
    """A run folder and the recipe in it."""

    folder: Path
    recipe: Recipe

    @staticmethod
    def is_one(folder: Path) -> bool:
        """Whether a folder is a run's."""
        return (folder / "config.yaml").is_file()

    @staticmethod
    def open(folder: str | Path) -> Run:
        """The run in a folder.

        Raises:
            FewstepError: It is not a run's folder.
        """
        path = Path(folder).expanduser()
        if not Run.is_one(path):
            raise FewstepError(
                f"{folder}: not a run folder (no config.yaml in it)", code="missing-file"
            )
        # Not `load_recipe`: the training prompts may be gone by now, and nothing here needs them.
        text = (path / "config.yaml").read_text(encoding="utf-8")
        return Run(path, parse_recipe(migrated(yaml.load(text))))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels that the student is distilled at."""
        return self.recipe.resolution.height, self.recipe.resolution.width

    def load_backbone(self, *, dtype: str = "float32", device: str | None = None) -> Backbone:
        """The pretrained model of the run, on the recipe's device unless told otherwise."""
        model = self.recipe.model
        # Whether it can be a teacher was decided when the run began.
        backbone = models.load(model.path, dtype=dtype, teacher=False, **model.options)
        return backbone.to(pick_device(device or self.recipe.train.device))

    def load_student(self, backbone: Backbone, which: str = "best") -> Student:
        """The student of a checkpoint (`best`, `last`, or a step), in the backbone's own network.

        It is the running mean of the weights, where the run kept one.
        Of an adapter, the scale alpha / rank is multiplied into the weights, so that it is right at
        scale 1 wherever it is loaded.

        Raises:
            FewstepError: The run has no such checkpoint, or its files are damaged.
        """
        path = store.find(self.folder, _which(which))
        state, recipe = store.student_weights(path), self.recipe.student
        if recipe.mode == "lora":
            state, recipe = _at_scale_one(state, recipe)
        net = become_student(backbone, recipe, state)
        return Student(net, recipe, path, int(store.read_state(path)["step"]))


def _which(text: str) -> str | int:
    """`best`, `last`, or the number of a step."""
    if text.isdecimal():
        return int(text)
    if text not in ("best", "last"):
        raise unknown("checkpoint", text, ("best", "last"))
    return text


def _at_scale_one(
    state: Mapping[str, Tensor], recipe: StudentRecipe
) -> tuple[dict[str, Tensor], StudentRecipe]:
    lora = recipe.lora
    if lora is None or lora.alpha is None:
        return dict(state), recipe
    scale = lora.alpha / lora.rank
    scaled = {key: value * scale if ".lora_B." in key else value for key, value in state.items()}
    plain = lora.model_copy(update={"alpha": None})
    return scaled, recipe.model_copy(update={"lora": plain})


def open_model(
    place: str | Path,
    *,
    which: str | None = None,
    dtype: str = "float32",
    device: str = "auto",
    **options: Any,
) -> Model:
    """The network that a folder stands for.

    Args:
        place: A run folder, an exported folder (whole or adapter), any diffusers folder, or a repo
            id.
        which: Of a run: the `best` or `last` checkpoint; None takes its export if there is one,
            else the best checkpoint.
        dtype: Name of the torch dtype to hold weights in; pictures equal those of the model card's
            snippet in float32.
        device: Where to draw; `auto` takes an accelerator if there is one.
        options: What the family's loader takes; they win over what the folder itself says.

    Raises:
        FewstepError: Nothing that can be loaded is there.
    """
    folder = resolve(place)
    if Run.is_one(folder):
        if which is None and _is_export(folder / "export"):
            return open_model(folder / "export", dtype=dtype, device=device, **options)
        run = Run.open(folder)
        backbone = run.load_backbone(dtype=dtype, device=device)
        student = run.load_student(backbone, which or "best")
        label = f"{folder.name}/{student.path.name}"
        return Model(backbone, student.net, label, run.size, run.recipe.grid.shift)
    note = read_note(folder)
    options = {**note.get("options", {}), **options}
    adapter = (folder / LORA).is_file()
    source = _base_of(folder, note) if adapter else place
    backbone = models.load(source, dtype=dtype, teacher=False, **options)
    backbone.to(pick_device(device))
    if adapter:
        backbone.load_lora(folder)
    size = tuple(note["size"]) if note.get("size") else None
    return Model(backbone, backbone.net, str(place), size, note.get("shift"))


def read_note(folder: Path) -> dict[str, Any]:
    """What an exported folder says of itself; nothing where it is an ordinary one."""
    return read_json(folder / NOTE) or {}


def _is_export(folder: Path) -> bool:
    return (folder / NOTE).is_file()


def _base_of(folder: Path, note: Mapping[str, Any]) -> str:
    if "base" not in note:
        raise FewstepError(
            f"{folder}: an adapter, but {NOTE} does not say of which model", code="mismatch"
        )
    return str(note["base"])
