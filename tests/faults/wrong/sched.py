"""Wrong schedulers in model folders, and exports that are damaged or in another's place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from faults.entry import Result
from faults.table import (
    RECIPE,
    RUN,
    Case,
    copy_of_pipeline,
    copy_of_run,
    exported_folder,
    pipeline_folder,
)

NAN, INF = float("nan"), float("inf")
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
PART = "scheduler/scheduler_config.json"
FILE = f"model/{PART}"

EULER: list[dict[str, Any]] = [
    *({"shift": value} for value in (0, -3.0, NAN, INF, "3", None, True, [3.0], {}, 1e30, 1e-30)),
    *({"shift_terminal": value} for value in (1.0, -0.02, 2, NAN, "0.02", True, [0.02])),
    *({"num_train_timesteps": value} for value in (0, -1, 500, 1000.0, "1000", None, 10**30, True)),
    *({"invert_sigmas": value} for value in (True, "false", 1, None)),
    *({"stochastic_sampling": value} for value in (True, 1, "no")),
    *({f"use_{kind}_sigmas": True} for kind in ("karras", "exponential", "beta")),
    {"use_karras_sigmas": True, "use_beta_sigmas": True},
    *({"use_dynamic_shifting": value} for value in ("yes", 2, None, [])),
    *(
        {"use_dynamic_shifting": True, **wrong}
        for wrong in (
            {"base_shift": None},
            {"base_shift": NAN},
            {"max_shift": INF},
            {"max_shift": "1.15"},
            {"base_image_seq_len": 4096},
            {"max_image_seq_len": -1},
            {"base_image_seq_len": 1.5},
            {"base_image_seq_len": None},
            {"time_shift_type": "cubic"},
            {"time_shift_type": None},
            {"base_shift": 900.0, "max_shift": 900.0},
            {"base_shift": -2.0, "max_shift": -1.0, "time_shift_type": "linear"},
            {"base_shift": 1e308, "max_shift": -1e308},
        )
    ),
    {"flow_shift": 5.0},
]
"""Settings of the embedded pipeline's own FlowMatchEulerDiscreteScheduler."""

OTHERS: list[tuple[str, dict[str, Any]]] = [
    ("FlowMatchHeunDiscreteScheduler", {"shift": 0.0}),
    ("FlowMatchHeunDiscreteScheduler", {"num_train_timesteps": 250}),
    ("FlowMatchHeunDiscreteScheduler", {"use_dynamic_shifting": True}),
    ("FlowMatchLCMScheduler", {"shift": 3.0}),
    ("FlowMapEulerDiscreteScheduler", {"shift": -1.0}),
    ("UniPCMultistepScheduler", {}),
    ("UniPCMultistepScheduler", FLOW | {"use_flow_sigmas": False}),
    ("UniPCMultistepScheduler", FLOW | {"prediction_type": "epsilon"}),
    ("UniPCMultistepScheduler", FLOW | {"flow_shift": 0}),
    ("UniPCMultistepScheduler", FLOW | {"flow_shift": NAN}),
    ("UniPCMultistepScheduler", FLOW | {"use_dynamic_shifting": True}),
    ("UniPCMultistepScheduler", FLOW | {"final_sigmas_type": "sigma_min"}),
    ("UniPCMultistepScheduler", FLOW | {"shift": 7.0}),
    ("UniPCMultistepScheduler", FLOW | {"solver_type": "heun2"}),
    ("UniPCMultistepScheduler", FLOW | {"beta_schedule": "cosine"}),
    ("UniPCMultistepScheduler", FLOW | {"sigma_min": 0.1}),
    ("DPMSolverMultistepScheduler", FLOW | {"use_lu_lambdas": True}),
    ("DPMSolverMultistepScheduler", FLOW | {"use_karras_sigmas": True}),
    ("DPMSolverMultistepScheduler", FLOW | {"thresholding": True}),
    ("DPMSolverMultistepInverseScheduler", FLOW),
    ("DEISMultistepScheduler", FLOW | {"use_exponential_sigmas": True}),
    ("SASolverScheduler", FLOW | {"num_train_timesteps": 10}),
    *((name, {}) for name in ("DDIMScheduler", "EulerDiscreteScheduler", "PNDMScheduler")),
    *((name, {}) for name in ("LCMScheduler", "TCDScheduler", "SCMScheduler", "EDMEulerScheduler")),
    *((name, {}) for name in ("NoSuchScheduler", "AutoencoderKL", "", "../x", "logging")),
]
"""Schedulers of other classes in its place."""

NOTES = ["", "[]", "5", "nul\0l", "{" * 9999, '{"a": NaN', '"a"', "\ufeff{}", "{}"]
NOTE_VALUES: list[tuple[str, Any]] = [
    *(("size", value) for value in (5, [64], ["64", 64], [0, 64], [-1, 64], [10**9, 64], None)),
    *(("shift", value) for value in (-1, 0, NAN, "1", [1])),
    *(("terminal", value) for value in (0, 1, 2, NAN, "none", [0.1])),
    *(("step", value) for value in (-1, "x", 1.5, None)),
    *(("options", value) for value in (5, [], {"max_sequence_length": 0}, {"nothing": 1})),
    *(("files", value) for value in (5, [1], {"a": 1}, {"../../etc/passwd": "x"}, {"gone": "x"})),
    *(("base", value) for value in (5, "", "nobody/nothing", "gone", "package://no.such/x")),
    ("shift_scale", 0.42),
]


def cases() -> Iterator[Case]:
    """All of them."""
    for settings in EULER:
        yield _model(f"scheduler {settings}", partial(_scheduler, settings=settings), names=(PART,))
    for name, settings in OTHERS:
        wrong = partial(_scheduler, settings=settings, kind=name)
        yield _model(f"a {name or 'nameless scheduler'} {settings}", wrong, names=())
    for text in ("", "[]", "5", "{", "nul\0l", "{" * 9999, "\xff"):
        yield _model(f"a scheduler's file of {text[:9]!r}", partial(_write, file=FILE, text=text))
    yield _model("no scheduler's file", lambda folder: (folder / FILE).unlink())
    yield _model("a scheduler of another class than the index says", _other_class)
    for name, command in (
        ("a dry run", ["distill", RECIPE, "--set", "model.path=model", "--dry-run"]),
        ("a plan", ["plan", RECIPE, "--set", "model.path=model", "--gpu", "h100-80"]),
        ("drawing", ["sample", "model", "--prompt", "a", "--out", "o"]),
        ("encoding", ["encode", "--prompt", "a", "--model", "model", "--out", "o"]),
    ):
        wrong = partial(_scheduler, settings={"stochastic_sampling": True})
        yield Case(f"a wrong scheduler: {name}", command, _with_model(wrong), names=(FILE,))
    yield from _exports()
    yield from _accepted()


def _exports() -> Iterator[Case]:
    """Exports in the wrong place, and exports that somebody damaged."""
    for name, make in {
        "somebody's folder": lambda out: _put(out / "thesis.tex"),
        "a folder with hidden files": lambda out: _put(out / ".git" / "HEAD"),
        "a file": _put,
        "a dangling link": lambda out: out.symlink_to("nowhere"),
        "a folder with a bare note": lambda out: (_put(out / "x"), _put(out / "fewstep.json")),
        "an export with a picture of mine": lambda out: (_lora(out), _put(out / "mine.png")),
        "an export with a changed card": lambda out: (_lora(out), _put(out / "README.md")),
        "an export of an earlier version": lambda out: (_lora(out), _note(out, files=None)),
        "another run": lambda out: copy_of_run(out.parent, out.name),
        "a model": lambda out: copy_of_pipeline(out.parent, out.name),
    }.items():
        argv = ["export", RUN, "--out", "out"]
        yield Case(f"--out on {name}", argv, lambda at, make=make: make(at / "out"), ("out",))
    for dtype in ("int8", "float64", "bf16", "", "Float32", "complex64"):
        argv = ["export", RUN, "--merge", "--out", "out", "--dtype", dtype]
        yield Case(f"export --dtype {dtype!r}", argv, names=("dtype",))
        argv = ["sample", RUN, "--prompt", "a", "--out", "out", "--dtype", dtype]
        yield Case(f"sample --dtype {dtype!r}", argv, names=("dtype",))
    draw = ["sample", "out", "--prompt", "a", "--out", "o"]
    for text in NOTES:
        setup = partial(_lora_with, change=partial(_write, file="fewstep.json", text=text))
        yield Case(f"a note of {text[:9]!r}", draw, setup, names=("fewstep.json",))
    for key, value in NOTE_VALUES:
        setup = partial(_lora_with, change=partial(_note, **{key: value}))
        yield Case(f"a note whose {key} is {value!r}", draw, setup)
    weights = "pytorch_lora_weights.safetensors"
    for name, change in {
        "a byte more": lambda out: _write(out, weights, (out / weights).read_bytes() + b"\0"),
        "half of it": lambda out: _write(out, weights, (out / weights).read_bytes()[:9999]),
        "a flipped bit": lambda out: _flip(out / weights),
        "no weights": lambda out: (out / weights).unlink(),
        "a link to nowhere": lambda out: (
            (out / weights).unlink(),
            (out / weights).symlink_to("nowhere"),
        ),
    }.items():
        setup = partial(_lora_with, change=change)
        yield Case(f"an export with {name}", draw, setup, names=(weights,))


def _accepted() -> Iterator[Case]:
    """Schedulers that are honoured: the export has a plain one that does the same."""
    short = ["distill", RECIPE, "--set", "model.path=model", "--out", "r"]
    for name, settings, shift in (
        ("FlowMatchHeunDiscreteScheduler", {"shift": 2.0}, 2.0),
        ("UniPCMultistepScheduler", FLOW, 3.0),
        ("DPMSolverMultistepScheduler", FLOW | {"flow_shift": 1.5}, 1.5),
    ):
        wrong = partial(_scheduler, settings=settings, kind=name)
        yield Case(f"a run of a {name}", short, _with_model(wrong), check=_finished)
        plan = [*short[:-2], "--set", "grid.shift=null", "--dry-run", "--json"]
        check = partial(_grid, shift=shift)
        yield Case(f"the grid of a {name}", plan, _with_model(wrong), check=check)


def _finished(result: Result) -> None:
    assert (result.folder / "r" / "checkpoints" / "step-00000002" / "state.json").is_file()


def _grid(result: Result, shift: float) -> None:
    found = json.loads(result.out)["few_step"]
    expected = [shift * s / (1 + (shift - 1) * s) for s in (1.0, 0.75, 0.5, 0.25)] + [0.0]
    assert all(abs(a - b) < 1e-5 for a, b in zip(found, expected, strict=True)), found


def _model(name: str, wrong: Callable[[Path], object], names: tuple[str, ...] = (FILE,)) -> Case:
    """A run of a model with something wrong in its scheduler."""
    argv = ["distill", RECIPE, "--set", "model.path=model", "--out", "out"]
    return Case(name, argv, _with_model(wrong), names=names)


def _with_model(wrong: Callable[[Path], object]) -> Callable[[Path], None]:
    """Sets up a model whose weights are links, as nothing should come to read them."""

    def setup(folder: Path) -> None:
        shutil.copytree(pipeline_folder(), folder / "model", copy_function=_linked)
        wrong(folder)

    return setup


def _linked(source: str, target: str) -> None:
    if source.endswith(".json"):
        shutil.copyfile(source, target)
    else:
        Path(target).symlink_to(source)


def _scheduler(folder: Path, settings: dict[str, Any], kind: str | None = None) -> None:
    file, index = folder / FILE, folder / "model" / "model_index.json"
    old = json.loads(file.read_text())
    if kind is not None:
        old = {"_class_name": kind, "num_train_timesteps": 1000}
        listed = json.loads(index.read_text()) | {"scheduler": ["diffusers", kind]}
        index.write_text(json.dumps(listed))
    file.write_text(json.dumps(old | settings))


def _other_class(folder: Path) -> None:
    _scheduler(folder, {"_class_name": "UniPCMultistepScheduler"} | FLOW)


def _write(folder: Path, file: str, text: str | bytes) -> None:
    content = text if isinstance(text, bytes) else text.encode("latin-1", "replace")
    (folder / file).write_bytes(content)


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _put(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("years of work")


def _lora(out: Path) -> None:
    shutil.copytree(exported_folder(), out)


def _lora_with(folder: Path, change: Callable[[Path], object]) -> None:
    _lora(folder / "out")
    change(folder / "out")


def _note(folder: Path, **changed: Any) -> None:
    file = folder / "fewstep.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
