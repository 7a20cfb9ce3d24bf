"""The command ``fewstep init``: a recipe for a model, prompts and a device, with its reasons."""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fewstep.cli.console import say, say_json
from fewstep.cli.options import Json
from fewstep.cli.recipes import write_new
from fewstep.utils.errors import FewstepError
from fewstep.utils.files import check_writable
from fewstep.utils.pretrained import LoraFile, Pretrained
from fewstep.utils.resources import expand
from fewstep.utils.terminal import one_line, printable

if TYPE_CHECKING:
    from fewstep.config import Recipe
    from fewstep.models import Backbone
    from fewstep.planning.fitting import Choice, Fit

BUILTIN = "builtin:general"
_AHEAD = 10_000  # prompts up to which all are encoded before training
_MODES: dict[str, dict[str, Any]] = {
    "lora": {"mode": "lora", "optimizer.lr": 1e-4, "fake": 2e-5},
    "full": {"mode": "full", "lora": None, "optimizer.lr": 1e-5, "fake": 5e-6},
}


@dataclass(frozen=True)
class Device:
    """What the run is for.

    Attributes:
        name: For people.
        room: Bytes that a run may take.
        cuda: Whether it is a graphics card.
    """

    name: str
    room: int
    cuda: bool


def init(
    model: Annotated[
        str, typer.Option(help="Diffusers folder, single-file checkpoint or hub id.")
    ] = "",
    lora: Annotated[
        list[str] | None,
        typer.Option(help="LoRA file that belongs to the model; may be repeated."),
    ] = None,
    components: Annotated[
        str, typer.Option(help="Of a single file: folder or hub id with the parts it lacks.")
    ] = "",
    prompts: Annotated[
        str, typer.Option(help="File, folder, data set, or builtin:general, which ships.")
    ] = "",
    gpu: Annotated[
        str, typer.Option(help="Kind of card, such as rtx4090-24; default: what is here.")
    ] = "",
    mode: Annotated[
        Literal["lora", "full"] | None, typer.Option(help="Train a LoRA or the whole network.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The recipe; default recipe.yaml.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a commented recipe that fits your model, prompts and card; asks for what is missing."""
    if sys.stdin is not None and sys.stdin.isatty() and not as_json:
        model = model or _ask("model (diffusers folder or hub id)", None)
        prompts = prompts or _ask("prompts (file, folder or data set)", BUILTIN)
        gpu = gpu or _ask("card (such as rtx4090-24; empty: what is here)", "")
        to = to or Path(_ask("recipe to write", "recipe.yaml"))
    if not model:
        raise FewstepError(
            "init: no model; give --model FOLDER, FILE.safetensors or a hub id",
            code="missing-input",
        )
    file = expand(to or "recipe.yaml")
    if os.path.lexists(file):
        raise FewstepError(f"{file}: is there already; give --to NEW-FILE", code="exists")
    check_writable(file.parent)  # before the work
    base, found, reasons, text = _proposed(
        Pretrained(model, None, components or None, tuple(map(LoraFile, lora or ()))),
        prompts or BUILTIN,
        gpu,
        mode,
        file,
    )
    write_new(file, text)
    if as_json:
        settings = {choice.key: choice.value for choice in found.choices}
        content = {"file": str(file), "extends": base, "settings": settings, "reasons": reasons}
        say_json(content | {"peak_bytes": found.bytes})
        return
    say(f"recipe: {file}")
    for reason in reasons:
        say(f"- {reason}")
    say(f"next: {' --dry-run; '.join([_command(file)] * 2)}")


def _command(file: Path) -> str:
    return f"fewstep distill {shlex.quote(str(file))}"


def _ask(what: str, default: str | None) -> str:
    answer: str = typer.prompt(what, default=default, err=True, show_default=bool(default))
    return answer.strip()


def _proposed(
    model: Pretrained, prompts: str, gpu: str, mode: str | None, file: Path
) -> tuple[str, Fit, list[str], str]:
    """Name of the recipe to extend, what to set in it, why, and the file's text.

    Raises:
        FewstepError: The model, the prompts or the card are not there, or it fits in no way.
    """
    from fewstep import models
    from fewstep.config import Recipe, shipped
    from fewstep.data.prompts import read_prompts
    from fewstep.planning.dry_run import gb
    from fewstep.planning.estimate import Estimate
    from fewstep.planning.fitting import Choice, Fit, fit

    device = _device(gpu)
    read = read_prompts(prompts)
    backbone = models.load_meta(model)
    base = base_recipe(backbone, model.path, mode)
    own = [
        Choice("model.path", model.path, backbone.name),
        Choice("data.prompts", prompts, read.describe()),
    ]
    if model.components:
        own.append(Choice("model.components", model.components, "what the file lacks"))
    if model.loras:
        files = [{"path": each.path, "scale": each.scale} for each in model.loras]
        own.append(Choice("model.loras", files, "part of the teacher; the student starts from it"))
    own += _of_mode(Recipe.named(base), mode)
    own += _of_size(backbone, Recipe.named(base), model.path)
    own += _of_prompts(prompts, len(read.distinct))
    recipe = Recipe.named(base, {choice.key: choice.value for choice in own})
    found = fit(Estimate.load(recipe, cuda=device.cuda), device.room)
    if not found.fits:
        raise FewstepError(
            f"{model}: takes {gb(found.bytes)} GB at least, more than the {gb(device.room)} GB of "
            f"{device.name}; give another --gpu, or a smaller model",
            code="out-of-memory",
        )
    by_key = {choice.key: choice for choice in (*own, *found.choices)}  # later ones win
    found = Fit(tuple(by_key.values()), found.bytes, True)
    trains = by_key.get("student.mode", Choice("", recipe.student.mode, "")).value
    about = shipped.find(base).read_text(encoding="utf-8").splitlines()[0].strip("# .")
    reasons = [
        f"model: family {backbone.name}; it starts from the recipe {base} ({about})",
        f"prompts: {read.describe()}; {read.distribution()}",
        "trains a LoRA: one copy of the network in memory instead of three"
        if trains == "lora"
        else "trains the whole network: three copies of it in memory",
        f"memory: {gb(found.bytes)} GB counted, of the {gb(device.room)} GB of {device.name}",
        *(f"{c.key}={json.dumps(c.value)}: {c.why}" for c in found.choices if c not in own),
    ]
    return base, found, reasons, recipe_text(base, found.choices, reasons, file)


def base_recipe(backbone: Backbone, model: str, mode: str | None) -> str:
    """The shipped recipe that is nearest: of the model, else of its family and of its size.

    Raises:
        FewstepError: None of its family ships.
    """
    from fewstep import models
    from fewstep.cli.recipes import listed

    own = sum(parameter.numel() for parameter in backbone.net.parameters()) / 1e9
    sizes = {
        each.repo: each.parameters
        for family in models.available()
        for each in family.models
        if family.name == backbone.name
    }
    rows = [row for row in listed() if row["model"] in sizes]
    if not rows:
        raise FewstepError(
            f"{model}: no recipe ships for the family {backbone.name}; see docs/guide.md",
            code="unsupported",
        )

    def distance(row: dict[str, Any]) -> tuple[bool, float, bool]:
        other_mode = row["mode"] != (mode or "lora")
        return row["model"] != model, abs(math.log(sizes[row["model"]] / own)), other_mode

    return str(min(rows, key=distance)["name"])


def recipe_text(base: str, choices: Sequence[Choice], reasons: Sequence[str], file: Path) -> str:
    """The recipe's file: reasons, then settings, each with a comment."""
    head = [
        "Written by fewstep init. Everything that is not here is that of the recipe it extends:",
        f"fewstep recipes {base}. All settings: docs/settings.md.",
        "",
        f"  {_command(file)} --dry-run",
        f"  {_command(file)}",
        "",
    ]
    lines = [f"# {printable(line).replace(chr(10), ' ')}".rstrip() for line in head]
    for reason in reasons:
        lines += textwrap.wrap(
            one_line(reason), 118, initial_indent="# - ", subsequent_indent="#   "
        )
    lines.append(f"extends: {base}")
    nested: dict[str, Any] = {}
    for choice in choices:
        *sections, name = choice.key.split(".")
        node = nested
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = choice
    return "\n".join([*lines, *_block(nested, "")]) + "\n"


def _block(nested: dict[str, Any], indent: str) -> Iterator[str]:
    for name, value in nested.items():
        if isinstance(value, dict):
            yield from ([""] if not indent else [])
            yield f"{indent}{name}:"
            yield from _block(value, indent + "  ")
        else:  # JSON's values are YAML's
            yield f"{indent}{name}: {json.dumps(value.value)} # {one_line(value.why)}"


def _device(gpu: str) -> Device:
    """The card of a name, else what is in this computer."""
    import psutil
    import torch

    from fewstep.planning.gpus import find_gpu
    from fewstep.utils.hardware import SPARE

    if gpu:
        kind = find_gpu(gpu)
        return Device(f"one {kind.name}", kind.room, cuda=True)
    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        return Device(found.name, round(found.total_memory * (1 - SPARE)), cuda=True)
    memory = psutil.virtual_memory().total
    return Device("this computer, without a graphics card", round(memory * (1 - SPARE)), cuda=False)


def _of_mode(recipe: Recipe, mode: str | None) -> list[Choice]:
    """What makes a recipe one of another mode."""
    from fewstep.planning.fitting import Choice

    if mode in (None, recipe.student.mode):
        return []
    values = dict(_MODES[str(mode)])
    fake = Choice("fake_teacher.optimizer.lr", values.pop("fake"), f"as usual in mode {mode}")
    return [*(Choice(f"student.{key}", v, f"mode {mode}") for key, v in values.items()), fake]


def _of_size(backbone: Backbone, recipe: Recipe, model: str) -> list[Choice]:
    """The size that a model draws by itself, where the recipe is of another model's."""
    from fewstep.inference.sample import default_size
    from fewstep.planning.fitting import Choice

    if recipe.model.path == model:
        return []
    height, width = default_size(backbone)
    why = "what its own pipeline draws"
    return [Choice("resolution.height", height, why), Choice("resolution.width", width, why)]


def _of_prompts(prompts: str, count: int) -> list[Choice]:
    """How the prompts are encoded, and which others judge the result."""
    from fewstep.planning.fitting import Choice

    ahead = count <= _AHEAD
    why = "the text encoders leave memory before training" if ahead else "too many to encode ahead"
    judged = [Choice("evaluate.prompts", f"{prompts}-heldout", "others, to judge the result by")]
    return [Choice("data.encode_ahead", ahead, why), *(judged if prompts == BUILTIN else [])]
