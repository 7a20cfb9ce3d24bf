"""Numbers that are not finite, wherever they come from, and checkpoints that are not to be used."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from faults.table import RECIPE, Case, copy_of_pipeline, copy_of_run

NOT_FINITE = {"NaN": math.nan, "infinity": math.inf, "minus infinity": -math.inf}
WEIGHTS = {
    "transformer": "transformer/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
    "text_encoder_2": "text_encoder_2/model.safetensors",
}
"""Component -> its file in the embedded pipeline."""
READERS = {
    "distill": ["distill", RECIPE, "--set", "model.path=model", "--out", "out"],
    "sample": ["sample", "model", "--prompt", "a", "--steps", "1", "--out", "out"],
    "encode": ["encode", "--prompt", "a", "--model", "model", "--out", "out"],
}
GROUPS = ("student", "fake_teacher", "optimizers", "ema")
RUNS = {
    "export": ["export", "run", "--out", "out"],
    "sample": ["sample", "run", "--prompt", "a", "--steps", "1", "--out", "out"],
    "evaluate": ["evaluate", "run"],
}
RATES = ("student.optimizer", "fake_teacher.optimizer")
SETTINGS = ("lr", "clip", "eps", "weight_decay")
NO_RATES = (".nan", ".inf", "-.inf", "-1", "1e400", "zebra", "[1.0]")


def cases() -> Iterator[Case]:
    """All of them."""
    yield from _models()
    yield from _students()
    yield from _going_on()
    yield from _settings()


def _models() -> Iterator[Case]:
    for component, file in WEIGHTS.items():
        for what, value in NOT_FINITE.items():
            for command, argv in READERS.items():
                if command != "encode" or component.startswith("text_encoder"):
                    yield Case(
                        f"{command} with {what} in {component}",
                        argv,
                        setup=partial(_poison_model, file=file, value=value),
                        names=("model", component),
                    )


def _students() -> Iterator[Case]:
    for command, argv in RUNS.items():
        for what, value in NOT_FINITE.items():
            yield Case(
                f"{command} of a student with {what}",
                argv,
                setup=partial(_poison_run, groups=("student", "ema"), value=value),
                names=("step-00000002",),
            )
    for command, argv in RUNS.items():
        for which in ("last", "2") if command == "export" else ("best",):
            yield Case(
                f"{command} --which {which} of an unhealthy checkpoint",
                [*argv, "--which", which] if command == "export" else argv,
                setup=partial(_mark, steps=(1, 2) if which == "best" else (2,)),
                names=("step-", "it was too bright", "healthy"),
            )


def _going_on() -> Iterator[Case]:
    for group in GROUPS:
        for what, value in NOT_FINITE.items():
            yield Case(
                f"resuming with {what} in {group}",
                ["distill", RECIPE, "--out", "run", "--resume", "--set", "train.steps=3"],
                setup=partial(_poison_run, groups=(group,), value=value),
                names=(group,),
            )
    yield Case(
        "resuming past saving",
        ["distill", RECIPE, "--out", "run", "--resume", "--set", "train.steps=3"],
        setup=partial(_mark, steps=(2,), past_saving=True),
        names=("it was too bright", "--resume-from 1"),
    )
    for step in ("0", "-1", "3", "1000000000000", "zebra", "1.5", ""):
        yield Case(
            f"going back to step {step!r}",
            ["distill", RECIPE, "--out", "run", "--resume-from", step],
            setup=copy_of_run,
        )
    yield Case(
        "going back where no run is",
        ["distill", RECIPE, "--out", "empty", "--resume-from", "1"],
        setup=lambda folder: (folder / "empty").mkdir(),
        names=("empty",),
    )


def _settings() -> Iterator[Case]:
    for role in RATES:
        for name in SETTINGS:
            for value in NO_RATES:
                yield Case(
                    f"{role}.{name}={value}",
                    ["distill", RECIPE, "--out", "out", "--set", f"{role}.{name}={value}"],
                    names=(f"{role}.{name}",),
                )
    for value in ("nan", "go", "1", "null", "true"):
        yield Case(
            f"train.on_divergence={value}",
            ["distill", RECIPE, "--out", "out", "--set", f"train.on_divergence={value}"],
            names=("train.on_divergence", "stop", "warn"),
        )


def _poison_model(folder: Path, *, file: str, value: float) -> None:
    path = copy_of_pipeline(folder) / file
    path.chmod(0o644)
    tensors = load_file(path)
    next(each for each in tensors.values() if each.dim() > 1).view(-1)[-1] = value
    save_file(tensors, path, metadata={"format": "pt"})


def _poison_run(folder: Path, *, groups: tuple[str, ...], value: float) -> None:
    """Every checkpoint has such a number, and the sums that go with it."""
    for path in sorted((copy_of_run(folder) / "checkpoints").glob("step-*")):
        for group in groups:
            file = path / f"{group}.safetensors"
            tensors = load_file(file)
            next(each for each in tensors.values() if torch.is_floating_point(each)).view(-1)[
                -1
            ] = value
            save_file(tensors, file)
        _seal(path, {})


def _mark(folder: Path, *, steps: tuple[int, ...], past_saving: bool = False) -> None:
    run = copy_of_run(folder)
    for step in steps:
        changes = {"unhealthy": "it was too bright", "past_saving": past_saving, "sound_until": 1}
        _seal(run / "checkpoints" / f"step-{step:08d}", changes)


def _seal(path: Path, changes: dict[str, Any]) -> None:
    """Writes state.json anew, so that its sums are right."""
    state = json.loads((path / "state.json").read_text()) | changes
    state.pop("sha256")
    state["files"] = {
        name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in state["files"]
    }
    text = json.dumps(state, sort_keys=True).encode()
    state["sha256"] = hashlib.sha256(text).hexdigest()
    (path / "state.json").write_text(json.dumps(state, indent=1))
