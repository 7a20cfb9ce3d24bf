"""Where the student starts: at its teacher, or at something that was trained before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep import models
from fewstep.config import Recipe
from fewstep.config.shipped import run_folder
from fewstep.models.base import Backbone
from fewstep.models.hub import is_single_file
from fewstep.models.lora import LORA_WEIGHTS, nearest
from fewstep.models.loras import LowRank, read_lora
from fewstep.models.single_file import is_lora
from fewstep.train.checkpoint import store
from fewstep.train.distributed import split_like
from fewstep.train.memory.adapters import adapter_parameters
from fewstep.train.roles import FAKE_TEACHER, STUDENT, Roles, load_parameters
from fewstep.utils.errors import FewstepError
from fewstep.utils.pretrained import Pretrained
from fewstep.utils.resources import expand

_KEY = "student.init"


@dataclass(frozen=True)
class _Weights:
    """What was trained before: a whole network's weights, or changes of some layers."""

    whole: Mapping[str, Tensor] = field(default_factory=dict)
    changes: Mapping[str, LowRank] = field(default_factory=dict)


@torch.no_grad()
def start_student(
    roles: Roles, recipe: Recipe, backbone: Backbone, note: Callable[[str], None]
) -> None:
    """Puts the student where `student.init` says, in place; the fake teacher stays the teacher.

    A LoRA, and the difference of two models, are added to the teacher's weights. In mode ``lora``
    a difference becomes the nearest one of the adapters' rank (its largest singular values).

    Args:
        roles: The networks of a fresh run.
        recipe: The run's recipe.
        backbone: Its model.
        note: Told how much of a difference the adapters hold.

    Raises:
        FewstepError: It cannot be read, or belongs to another model.
    """
    init = recipe.student.init
    if init is None:
        return
    given = _read(init.path, recipe, backbone, raw=init.raw)
    other: Mapping[str, Tensor] | None = None
    if init.relative_to is not None:
        other = _read(init.relative_to, recipe, backbone, raw=init.raw).whole
        if not given.whole or not other:
            raise FewstepError(
                f"{_KEY}.relative_to: both must be whole models; a LoRA is a difference itself",
                code="mismatch",
            )
    if recipe.student.mode == "lora":
        if given.whole and other is None and (recipe.memory.base is not None or roles.split):
            # The teacher's own were quantised, or are split.
            other = _whole(recipe.model.address, recipe)
        _start_adapters(roles, given, other, note)
        return
    student = roles.parameters(STUDENT)
    if given.changes:
        for name, change in given.changes.items():
            weight = _fitting(change, student.get(f"{name}.weight"))
            weight.add_(split_like(change.change(weight), weight))
    elif other is None:
        whole = given.whole.items()
        load_parameters(student, {name: split_like(x, student.get(name)) for name, x in whole})
    else:
        for name, tensor in _differences(student, given.whole, other).items():
            student[name].add_(split_like(tensor, student[name]))


def _start_adapters(
    roles: Roles,
    given: _Weights,
    other: Mapping[str, Tensor] | None,
    note: Callable[[str], None],
) -> None:
    net = roles.net(STUDENT)
    adapters, fakes = (adapter_parameters(net, role) for role in (STUDENT, FAKE_TEACHER))
    layers = [key.removesuffix(".lora_A.weight") for key in adapters if ".lora_A." in key]
    if lost := [name for name in given.changes if name not in layers]:
        raise FewstepError(
            f"{_KEY}: {len(lost)} of {len(given.changes)} of its layers have no adapter here, such "
            f"as {lost[0]}; name them in student.lora.targets",
            code="mismatch",
        )
    if other is None:  # the teacher's own
        parameters = net.named_parameters()
        own = ((key.replace(".base_layer.", "."), x) for key, x in parameters)
        other = {key: x for key, x in own if ".lora_" not in key}
    held, total = 0.0, sum(float(x.square().sum()) for x in _all(given.whole, other))
    for name in layers:
        layer: Any = net.get_submodule(name)
        weight = layer.get_base_layer().weight
        down, up = adapters[f"{name}.lora_A.weight"], adapters[f"{name}.lora_B.weight"]
        if given.changes:
            found = given.changes.get(name)
            if found is not None:
                _fitting(found, torch.empty(layer.out_features, layer.in_features, device="meta"))
        else:
            pair = given.whole.get(f"{name}.weight"), other.get(f"{name}.weight")
            found = _difference(*pair, weight, len(down))
        if found is None:
            continue
        if found.down.shape[0] > len(down):
            whole = torch.empty(layer.out_features, layer.in_features, device=down.device)
            found = LowRank(*nearest(found.change(whole), len(down)))
        found = LowRank(found.down.to(down.device), found.up.to(down.device))
        rank = found.down.shape[0]
        held += float(
            (found.up.double().flatten(1) @ found.down.double().flatten(1)).square().sum()
        )
        down[:rank] = found.down.flatten(1)
        up.zero_()
        up[:, :rank] = found.up.flatten(1) / layer.scaling[STUDENT]
        # Equal, so that a pull of one adapter towards the other means something.
        fakes[f"{name}.lora_A.weight"].copy_(down)
    if not held:
        raise FewstepError(f"{_KEY}: it does not differ from the teacher", code="mismatch")
    if total:
        note(f"{_KEY}: the adapters hold {held / total:.0%} of the difference's square")


def _fitting(change: LowRank, weight: Tensor | None) -> Tensor:
    if weight is None or not change.fits(weight):
        raise FewstepError(f"{_KEY}: a LoRA of another model", code="mismatch")
    return weight


def _all(given: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> list[Tensor]:
    """The differences of all tensors that both have in the same shape."""
    both = (name for name in given if name in other and given[name].shape == other[name].shape)
    return [given[name].float() - other[name].cpu().float() for name in both]


def _difference(
    given: Tensor | None, base: Tensor | None, weight: Tensor, rank: int
) -> LowRank | None:
    """The nearest difference of a layer of some rank; None where there is none."""
    if given is None or base is None or given.shape != base.shape or given.shape != weight.shape:
        raise FewstepError(f"{_KEY}: weights of another model", code="mismatch")
    change = given.to(weight.device, torch.float32) - base.to(weight.device, torch.float32)
    return LowRank(*nearest(change, rank)) if change.any() else None


def _differences(
    student: Mapping[str, Tensor], given: Mapping[str, Tensor], other: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What to add to each of the student's weights."""
    odd = [
        name
        for name, x in student.items()
        if name not in given
        or name not in other
        or not given[name].shape == other[name].shape == x.shape
    ]
    if odd:
        raise FewstepError(
            f"{_KEY}: weights of another model: {odd[0]} and {len(odd) - 1} more differ",
            code="mismatch",
        )
    return {
        name: (given[name].float() - other[name].float()).to(x.device)
        for name, x in student.items()
    }


# ----------------------------------------------------------------------------------------- reading


def _read(path: str, recipe: Recipe, backbone: Backbone, *, raw: bool) -> _Weights:
    """What is at a path: a run, a LoRA, an export or another model."""
    if run := run_folder(path):
        return _of_run(run, recipe, raw=raw)
    place = expand(path)
    if (place / LORA_WEIGHTS).is_file() or (place / "adapter_config.json").is_file():
        return _of_lora(path, backbone)
    file = is_single_file(Pretrained(path))
    if file is not None and is_lora(file):
        return _of_lora(path, backbone)
    return _Weights(whole=_whole(Pretrained(path, components=recipe.model.components), recipe))


def _of_run(folder: Path, recipe: Recipe, *, raw: bool) -> _Weights:
    """The student of a run: its running mean where it kept one, of the best checkpoint."""
    theirs = Recipe.of_run(folder)
    ours, its = (models.family_of(each.model.address).name for each in (recipe, theirs))
    if ours != its:
        raise FewstepError(f"{_KEY}: {folder}: a run of {its}, not {ours}", code="mismatch")
    weights = store.student_weights(store.find(folder), raw=raw)
    if theirs.student.mode == "full":
        return _Weights(whole=weights)
    lora = theirs.student.lora
    scale = lora.alpha / lora.rank if lora is not None and lora.alpha is not None else 1.0
    names = [key.removesuffix(".lora_A.weight") for key in weights if ".lora_A." in key]
    changes = {
        name: LowRank(weights[f"{name}.lora_A.weight"], weights[f"{name}.lora_B.weight"] * scale)
        for name in names
    }
    return _Weights(changes=changes)


def _of_lora(path: str, backbone: Backbone) -> _Weights:
    """The network's part of a LoRA."""
    try:
        return _Weights(changes=read_lora(backbone, path)[backbone.net_name])
    except FewstepError as error:
        raise FewstepError(f"{_KEY}: {error}", code=error.code) from error


def _whole(address: Pretrained, recipe: Recipe) -> dict[str, Tensor]:
    """All weights of a model's network."""
    try:
        loaded = models.load(
            address, teacher=False, encoders=False, vae=False, **recipe.model.options
        )
    except FewstepError as error:
        raise FewstepError(f"{_KEY}: {error}", code=error.code) from error
    return {name: each.detach() for name, each in loaded.net.named_parameters()}
