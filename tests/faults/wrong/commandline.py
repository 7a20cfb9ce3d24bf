"""Wrong command lines: each option of each command with each kind of value that it cannot have."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import typer.main

from faults.table import PIPELINE, RECIPE, RUN, Case
from fewstep.cli import app

SOUND: dict[str, list[str]] = {
    "demo": ["--recipe", RECIPE, "--out", "out"],
    "distill": [RECIPE, "--out", "out"],
    "encode": ["--prompt", "a", "--model", PIPELINE, "--out", "out"],
    "plan": [RECIPE, "--gpu", "h100-80"],
    "sample": [RUN, "--prompt", "a", "--steps", "1", "--out", "out"],
    "export": [RUN, "--out", "out"],
    "evaluate": [RECIPE, "--teacher-only", "--out", "out"],
    "compare": [RUN, RUN],
    "models": [],
    "doctor": [],
    "recipes": ["demo"],
    "watch": [RUN],
    "push": [RUN, "user/name", "--dry-run"],
    "init": ["--model", PIPELINE, "--to", "out.yaml"],
}
"""Command -> words with which it would do something."""

NUMBERS = ("zebra", "", "-1", "1e400", "nan", "1" * 30, "٣x", "0x10", "1,5")
"""What no option for a number takes."""
OVERRIDES = ("zebra", "=1", "a..b=1", "x=[", "x=!!python/name:os.system", "x=!!int zebra")
"""What no ``--set`` takes."""
ODD_PATHS = {
    "nothing": "",
    "a NUL": "a\0b",
    "a name that is not UTF-8": os.fsdecode(b"\xff\xfe"),
    "an unknown user's home": "~nobodyhere/x",
    "too long a name": "n" * 300,
    "too long a path": "n/" * 3000,
    "below a file": "file.txt/x",
    "a dangling link": "dangling",
    "a link to itself": "loop",
    "a device": "/dev/null/x",
    "a kernel file": "/proc/x",
}
"""What no option for a path takes, whether it is read or written."""
NOT_THERE = {"a missing file": "nowhere.x", "a pipe": "pipe", "an endless device": "/dev/zero"}
"""What cannot be read."""
READ = {  # command -> its words that read a file or a folder, with the words around it
    "demo": ["--recipe {} --out out"],
    "distill": ["{} --out out"],
    "plan": ["{} --gpu h100-80"],
    "encode": ["{} --model " + PIPELINE + " --out out", "--prompt a --out out --model {}"],
    "sample": ["{} --prompt a --out out", RUN + " --out out --prompts {}"],
    "export": ["{} --out out"],
    "evaluate": ["{}", "{} --teacher-only --out out"],
    "compare": ["{} " + RUN],
    "init": ["--to out.yaml --model {}", f"--model {PIPELINE} --to out.yaml --prompts {{}}"],
}
WRITTEN = {
    "demo": f"--recipe {RECIPE} --out {{}}",
    "distill": f"{RECIPE} --out {{}}",
    "encode": f"--prompt a --model {PIPELINE} --out {{}}",
    "sample": f"{RUN} --prompt a --steps 1 --out {{}}",
    "export": f"{RUN} --out {{}}",
    "evaluate": f"{RECIPE} --teacher-only --out {{}}",
    "recipes": "demo --to {}",
    "init": f"--model {PIPELINE} --to {{}}",
}


def cases() -> Iterator[Case]:
    """All of them."""
    for command, found in typer.main.get_command(app).commands.items():
        yield from _words(command)
        for option in found.params:
            if option.opts[0].startswith("--") and option.opts[0] != "--help":
                yield from _values(command, option)
    for command, several in READ.items():
        for words in several:
            odd = ODD_PATHS | NOT_THERE
            if command in ("sample", "export", "evaluate") and words.startswith("{}"):
                odd |= {"a text file": "file.txt", "an empty folder": "empty"}
            yield from (_with_path(command, words, what, path) for what, path in odd.items())
    for command, words in WRITTEN.items():
        odd = ODD_PATHS | {"a file": "file.txt"}
        yield from (_with_path(command, words, what, path) for what, path in odd.items())
    for name, argv, names in MISTAKES:
        yield Case(name, argv, setup=_scenery, names=names)
    for command, words in READ.items():
        yield Case(
            f"{command}: what is not there, --json",
            [command, *words[0].replace("{}", "./nowhere").split(), "--json"],
            names=("nowhere",),
        )


def _words(command: str) -> Iterator[Case]:
    """Mistakes that every command can be given."""
    sound, place = SOUND[command], f"fewstep {command}"
    for word in ("--zebra", "-z"):
        yield Case(f"{command} {word}", [command, *sound, word], names=(place, word))
    if command not in ("compare", "encode"):
        yield Case(f"{command} a word more", [command, *sound, "zebra"], names=(place, "zebra"))
    if command in ("distill", "plan", "sample", "export", "evaluate", "compare"):
        yield Case(f"{command} alone", [command], names=(place,))


def _values(command: str, option: Any) -> Iterator[Case]:
    """Values that an option does not take."""
    name, start = option.opts[0], [command, *SOUND[command]]
    kind = option.type_descriptor.annotation
    if option.is_flag:
        yield Case(f"{command} {name}=1", [*start, f"{name}=1"], names=(name,))
        return
    yield Case(f"{command} {name} alone", [*start, name], names=(name,))
    yield Case(f"{command} {name}= ", [*start, f"{name}="], names=(name,))
    yield Case(f"{command} {name[:-1]}", [*start, f"{name[:-1]}x", "1"], names=(f"{name[:-1]}x",))
    if kind in (int, float, int | None, float | None):
        for value in NUMBERS:
            yield Case(f"{command} {name} {value!r}", [*start, name, value], names=(name,))
    if name == "--set":
        for value in OVERRIDES:
            yield Case(f"{command} --set {value!r}", [*start, name, value])


def _with_path(command: str, words: str, what: str, path: str) -> Case:
    argv = [command, *(path if word == "{}" else word for word in words.split())]
    shown = path.lstrip("/").partition("/")[0][:60] if path.isprintable() else ""
    name = f"{command} {words} with {what}".replace(RECIPE, "RECIPE")
    return Case(name, argv, setup=_scenery, names=(shown,))


def _scenery(folder: Path) -> None:
    """What the odd paths stand for."""
    (folder / "file.txt").write_text("a red circle\n")
    (folder / "empty").mkdir()
    (folder / "dangling").symlink_to("nowhere/at/all")
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "pipe")


MISTAKES: tuple[tuple[str, Sequence[str], tuple[str, ...]], ...] = (
    ("an unknown command", ["dstill"], ("dstill", "distill")),
    ("an empty command", [""], ()),
    ("a command of control characters", ["\x1b[31mdistill\x07"], ("fewstep",)),
    ("a command that is not UTF-8", [os.fsdecode(b"\xff")], ()),
    ("an option in place of a command", ["--zebra"], ("--zebra",)),
    ("a long command", ["z" * 100_000], ("fewstep",)),
    ("no prompts", ["sample", RUN, "--out", "out"], ("--prompt",)),
    ("no prompts, --json", ["sample", RUN, "--out", "out", "--json"], ("--prompt",)),
    ("an empty prompt file", ["sample", RUN, "--prompts", "/dev/null"], ("/dev/null",)),
    ("too many steps", ["sample", RUN, "--prompt", "a", "--steps", "9"], ("steps",)),
    ("no steps", ["sample", RUN, "--prompt", "a", "--steps", "0"], ("steps",)),
    ("a device that is not there", ["sample", RUN, "--prompt", "a", "--device", "warp"], ("warp",)),
    ("a device without values", ["sample", RUN, "--prompt", "a", "--device", "meta"], ("meta",)),
    ("an unknown format", ["export", RUN, "--format", "zip"], ("zip",)),
    ("a format as code", ["export", RUN, "--format", "os:system"], ("os:system",)),
    ("an unknown choice", ["export", RUN, "--which", "newest"], ("newest",)),
    ("an unknown choice of evaluate", ["evaluate", RUN, "--which", "newest"], ("newest",)),
    ("merge and a format", ["export", RUN, "--merge", "--format", "lora"], ("merge",)),
    ("--out without --teacher-only", ["evaluate", RUN, "--out", "o"], ("--teacher-only",)),
    ("--set without --teacher-only", ["evaluate", RUN, "--set", "a=1"], ("--teacher-only",)),
    ("--teacher-only without --out", ["evaluate", RECIPE, "--teacher-only"], ("--out",)),
    ("--teacher-only of a run", ["evaluate", RUN, "--teacher-only", "--out", "o"], ("recipe",)),
    ("one run to compare", ["compare", RUN], ("two",)),
    ("runs that were not evaluated", ["compare", RUN, RUN], ("fewstep evaluate",)),
    ("no model to encode with", ["encode", "--prompt", "a", "--out", "o"], ("--model",)),
    ("nothing to encode", ["encode", "--model", PIPELINE, "--out", "o"], ("--prompt",)),
    ("an unknown accelerator", ["plan", RECIPE, "--gpu", "abacus"], ("abacus",)),
    ("no accelerators", ["plan", RECIPE, "--gpu", "h100-80", "--gpus", "0"], ("--gpus",)),
    ("a share above 1", ["plan", RECIPE, "--gpu", "h100-80", "--utilisation", "2"], ("--util",)),
    ("a price below 0", ["plan", RECIPE, "--gpu", "h100-80", "--price", "-2"], ("--price",)),
    ("an endless price", ["plan", RECIPE, "--gpu", "h100-80", "--price", "inf"], ("--price",)),
    ("a price that is none", ["plan", RECIPE, "--gpu", "h100-80", "--price", "nan"], ("--price",)),
    ("an unknown recipe", ["distill", "demoo", "--out", "o"], ("demoo", "demo")),
    ("a recipe above the folder", ["distill", "../../../etc/passwd"], ("passwd",)),
    ("a recipe as an address", ["distill", "https://example.org/r.yaml"], ("example.org",)),
    ("resume without a run", ["distill", RECIPE, "--out", "empty/x", "--resume", "x"], ("x",)),
    ("a run once more", ["distill", RUN], ("--resume",)),
    ("a recipe to copy onto a file", ["recipes", "demo", "--to", "file.txt"], ("file.txt",)),
    ("a recipe for no model", ["init"], ("--model",)),
    ("a recipe for no such card", ["init", "--model", PIPELINE, "--gpu", "abacus"], ("abacus",)),
    (
        "a recipe written onto a file",
        ["init", "--model", PIPELINE, "--to", "file.txt"],
        ("file.txt",),
    ),
    ("a copy of all recipes", ["recipes", "--to", "new.yaml"], ("--to",)),
    ("a recipe to copy that is not there", ["recipes", "demoo"], ("demoo", "demo")),
    ("a text as a recipe", ["distill", "file.txt", "--out", "o"], ("file.txt",)),
    (
        "a recipe to sample from",
        ["sample", RECIPE, "--prompt", "a", "--out", "o"],
        ("recipe.yaml",),
    ),
    ("a recipe to export", ["export", RECIPE, "--out", "o"], ("recipe.yaml",)),
    ("a folder of prompts to sample", ["sample", RUN, "--prompts", "empty"], ("empty",)),
    ("a hub id of too many parts", ["sample", "a/b/c/d", "--prompt", "a"], ("a/b/c/d",)),
    ("a hub id of nobody", ["sample", "nobody/nothing", "--prompt", "a"], ("nobody/nothing",)),
    ("an address as a model", ["sample", "https://u:p@h.org/m", "--prompt", "a"], ("h.org",)),
)
