"""Damaged run folders, and places that cannot be written to."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from faults.entry import Result
from faults.table import (
    PIPELINE,
    RECIPE,
    RUN,
    Case,
    copy_of_run,
    odd_characters,
    run_folder,
)

NEWEST = "checkpoints/step-00000002"
EMA = f"{NEWEST}/ema.safetensors"  # the student that is drawn from
STATE = f"{NEWEST}/state.json"
CHECKPOINT = [
    EMA,
    STATE,
    f"{NEWEST}/student.safetensors",
    f"{NEWEST}/fake_teacher.safetensors",
    f"{NEWEST}/optimizers.safetensors",
]
Damage = Callable[[Path], object]


def removed(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def instead(make: Callable[[Path], object]) -> Damage:
    """Something else in a file's place."""

    def damage(path: Path) -> None:
        removed(path)
        make(path)

    return damage


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Damage] = {
    "is missing": removed,
    "is empty": lambda path: path.write_bytes(b""),
    "is cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "is garbage": lambda path: path.write_bytes(random.Random(0).randbytes(900)),
    "is a folder": instead(Path.mkdir),
    "is a named pipe": instead(os.mkfifo),
    "is a link to nowhere": instead(lambda path: path.symlink_to("nowhere")),
    "is a link to itself": instead(lambda path: path.symlink_to(path.name)),
}
TEXTS = {"is a list": "[]", "is a number": "3", "is nested": "[" * 200_000}

RESUME = ["distill", RECIPE, "--resume", "--out", "run", "--set", "train.steps=3"]
READERS = {
    "export": ["export", "run", "--out", "e"],
    "sample": ["sample", "run", "--prompt", "a", "--steps", "1", "--out", "s"],
    "evaluate": ["evaluate", "run"],
}


def damaged(file: str, damage: Damage) -> Callable[[Path], object]:
    """What puts a run with a damaged file into a case's folder."""

    def setup(folder: Path) -> None:
        for path in copy_of_run(folder).glob(file):
            damage(path)

    return setup


def goes_on(result: Result) -> None:
    """The resumed run ends with the weights of one that was never damaged."""
    name = "checkpoints/step-00000003/student.safetensors"
    assert (result.folder / "run" / name).read_bytes() == (run_folder(3) / name).read_bytes()


def writes(*names: str) -> Callable[[Result], None]:
    """All of these are there afterwards."""

    def check(result: Result) -> None:
        for name in names:
            assert (result.folder / name).exists(), name

    return check


DONE = {
    "export": writes("e/fewstep.json"),
    "sample": writes("s/manifest.jsonl"),
    "evaluate": writes("run/evaluation.json", "run/report.html"),
}


def cases() -> Iterator[Case]:
    """All of them."""
    yield from resumed()
    yield from read()
    yield from locks()
    yield from places()
    yield from names()


def resumed() -> Iterator[Case]:
    """Runs that go on from what is sound, bit for bit, and those of which nothing is."""
    texts = {what: _text(text) for what, text in TEXTS.items()}
    sound: dict[str, dict[str, Damage]] = {
        **{file: DAMAGES | {"has a flipped bit": flipped} for file in CHECKPOINT},
        "metrics.jsonl": {**DAMAGES, **texts},
        "config.yaml": {**DAMAGES, **texts},
        "previews/teacher-*": DAMAGES,
        "previews/previews.json": DAMAGES,
    }
    sound[STATE] = {**sound[STATE], **texts}
    for file, kinds in sound.items():
        for what, damage in kinds.items():
            case = Case(f"resume: {file} {what}", RESUME, damaged(file, damage), check=goes_on)
            is_lost = file in ("metrics.jsonl", "config.yaml") and what == "is a folder"
            yield replace(case, check=None, names=(file,)) if is_lost else case
    for file in ("checkpoints/*/student.safetensors", "checkpoints"):
        for what in (
            "is missing",
            "is a named pipe",
            "is a link to nowhere",
            "is a link to itself",
        ):
            setup = damaged(file, DAMAGES[what])
            yield Case(f"resume: {file} {what}", RESUME, setup, ("run", "nothing to resume"))


def read() -> Iterator[Case]:
    """Runs whose student is wanted."""
    for command, argv in READERS.items():
        for file in (EMA, STATE):
            for what, damage in (DAMAGES | {"has a flipped bit": flipped}).items():
                cure = ("step-00000002", Path(file).name, "another checkpoint")
                yield Case(f"{command}: {file} {what}", argv, damaged(file, damage), cure)
        for what, damage in DAMAGES.items():
            is_file = what in ("is empty", "is cut", "is garbage")
            names = ("run", "config.yaml") if is_file else ("run",)
            name = f"{command}: config.yaml {what}"
            if command != "sample" or is_file:
                yield Case(name, argv, damaged("config.yaml", damage), names)
        for file in ("metrics.jsonl", "previews/previews.json", "previews/*.png"):
            for what in ("is missing", "is garbage", "is a folder", "is a named pipe"):
                setup = damaged(file, DAMAGES[what])
                yield Case(f"{command}: {file} {what}", argv, setup, check=DONE[command])
    for what, text in (TEXTS | {"lacks all": "{}", "is odd": '{"configurations": [3]}'}).items():

        def setup(folder: Path, text: str = text) -> None:
            (copy_of_run(folder) / "summary.json").write_text(text)

        argv = ["compare", "run", "run"]
        yield Case(f"compare: summary.json {what}", argv, setup, ("run", "evaluate"))


def locks() -> Iterator[Case]:
    """Runs that another process holds, or did."""
    for what, text in TEXTS.items():

        def setup(folder: Path, text: str = text) -> None:
            (copy_of_run(folder) / ".lock.json").write_text(text)

        yield Case(f"resume: .lock.json {what}", RESUME, setup, check=goes_on)

    def elsewhere(folder: Path) -> None:
        holder = {"host": "node-7", "pid": 12}
        (copy_of_run(folder) / ".lock.json").write_text(json.dumps(holder))

    names = ("node-7", "12", "remove", ".lock.json")
    yield Case("resume: locked by another machine", RESUME, elsewhere, names)
    setup = damaged("config.yaml", lambda path: (path.parent / ".lock").mkdir())
    yield Case("resume: a folder in the lock's place", RESUME, setup, ("run",))
    yield Case("a second run in the folder", ["distill", RECIPE, "--out", RUN], names=("--resume",))


ODD_NAMES = [
    "with space",
    "漢字 ü",
    "-dash",
    "a\nb",
    "q\"u'o",
    "$(x)",
    "[bold]x",
    "\x1b[31mred",
    "%s{0}",
]
WRITERS = {
    "distill": ["distill", RECIPE, "--out"],
    "sample": ["sample", RUN, "--prompt", "a", "--steps", "1", "--out"],
    "export": ["export", RUN, "--out"],
    "encode": ["encode", "--prompt", "a", "--model", PIPELINE, "--set", "t5=false", "--out"],
    "teacher": ["evaluate", RECIPE, "--teacher-only", "--out"],
}
PLACES = {
    "a file": "file",
    "below a file": "file/below",
    "a link to nowhere": "nowhere",
    "a link to itself": "itself",
    "below a link to itself": "itself/below",
    "a named pipe": "pipe",
    "a device": "/dev/null",
    "below a device": "/dev/null/below",
    "where nothing can be made": "/proc/below",
    "a name of 300 characters": "n" * 300,
    "a path of 5,000 characters": "/".join(["n" * 99] * 50),
    "of a user there is not": "~nobody-of-this-name/run",
}


def places() -> Iterator[Case]:
    """Places that cannot be written to."""

    def setup(folder: Path) -> None:
        (folder / "file").write_text("mine")
        (folder / "nowhere").symlink_to("gone")
        (folder / "itself").symlink_to("itself")
        os.mkfifo(folder / "pipe")

    for command, argv in WRITERS.items():
        for what, place in PLACES.items():
            yield Case(f"{command}: --out is {what}", [*argv, place], setup, (place[:60],))
    for name in ("manifest.jsonl", "0000-a.png"):
        yield Case(
            f"sample: somebody else's {name}",
            [*WRITERS["sample"], "o"],
            lambda folder, name=name: _text("{}")((folder / "o").mkdir() or folder / "o" / name),
            (name, "another folder"),
        )


def names() -> Iterator[Case]:
    """Names that a folder may have, odd as they are."""
    odd = (
        "with space",
        "漢字 ü",
        "-dash",
        "a\nb",
        "q\"u'o",
        "$(x)",
        "[bold]x",
        "\x1b[31mred",
        "%s{0}",
    )
    for name in odd:

        def check(result: Result, name: str = name) -> None:
            assert (result.folder / name / NEWEST / "state.json").is_file()
            assert not odd_characters(result.err.replace("\n", "")), result.err
            assert not odd_characters(result.out.replace("\n", "")), result.out

        yield Case(
            f"distill: a folder named {name!r}", [*WRITERS["distill"], f"./{name}"], check=check
        )


def _text(text: str) -> Damage:
    return lambda path: path.write_text(text)
