"""A bit that flips, a file that is cut, emptied or gone: noticed, or of no consequence.

Every file of a run folder is damaged in turn, in every way. Resuming, sampling and exporting then
give bitwise what they gave before, or are refused in one line. What is read by nothing but people
and reports carries no checksum: metrics, pictures and figures of an evaluation. There the commands
that read them must not crash.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from faults import processes, runs

WATCHED = ("preview.every=1", "checkpoint.keep_last=2")
LONGER = "train.steps=9"
REFUSED = 2


def flip(file: Path, dice: random.Random) -> None:
    """Flips one bit of the first bytes, the last ones, or any."""
    content = bytearray(file.read_bytes())
    near = min(64, len(content))
    place = dice.choice(
        [dice.randrange(near), -1 - dice.randrange(near), dice.randrange(len(content))]
    )
    content[place] ^= 1 << dice.randrange(8)
    file.write_bytes(content)


def cut(file: Path, dice: random.Random) -> None:
    os.truncate(file, dice.randrange(1, max(2, file.stat().st_size)))


def empty(file: Path, dice: random.Random) -> None:
    os.truncate(file, 0)


def remove(file: Path, dice: random.Random) -> None:
    file.unlink()


DAMAGES = (flip, flip, cut, empty, remove)


@pytest.fixture(scope="session")
def whole(recipe, finished, tmp_path_factory) -> Path:
    """A finished run with everything that commands add to it."""
    folder = processes.copied(finished(*WATCHED), tmp_path_factory.mktemp("whole") / "run")
    for words in (["evaluate", str(folder)], ["export", str(folder)]):
        code, said = processes.run(words, folder.parent / "log")
        assert code == 0, said
    return folder


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files_of(folder)}


def resume(recipe: Path, run_folder: Path, out: Path) -> list[str]:
    return runs.distill(recipe, run_folder, *WATCHED, LONGER, resume=True)


def sample(recipe: Path, run_folder: Path, out: Path) -> list[str]:
    return ["sample", str(run_folder), "--prompt", "a red circle", "--out", str(out)]


def export(recipe: Path, run_folder: Path, out: Path) -> list[str]:
    return ["export", str(run_folder), "--out", str(out)]


def export_anew(recipe: Path, run_folder: Path, out: Path) -> list[str]:
    return ["export", str(run_folder)]


def evaluate(recipe: Path, run_folder: Path, out: Path) -> list[str]:
    return ["evaluate", str(run_folder)]


def result(command: Callable[..., list[str]], run_folder: Path, out: Path) -> object:
    """What must be bitwise the same, of each command."""
    if command is resume:
        state, tensors = runs.content(run_folder, 9)
        return state, {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
    if command is evaluate:
        return None
    if command is sample:
        return {name: found for name, found in bytes_of(out).items() if name.endswith(".png")}
    folder = run_folder / "export" if command is export_anew else out
    decisive = (".safetensors", "config.json", "model_index.json")
    return {name: found for name, found in bytes_of(folder).items() if name.endswith(decisive)}


def damaged(command: Callable[..., list[str]], recipe: Path, whole: Path, work: Path, **how):
    """Damages files one by one and runs a command; returns offenders, and how many were refused."""
    work.mkdir()
    out, log = work / "out", work / "log"
    run_folder = processes.copied(whole, work / "run")
    code, said = processes.run(command(recipe, run_folder, out), log)
    assert code == 0, said
    expected, offenders, refused, dice = result(command, run_folder, out), [], 0, how["dice"]
    assert expected or command is evaluate
    for name, damage in how["cases"]:
        shutil.rmtree(out, ignore_errors=True)
        processes.copied(whole, run_folder)
        damage(run_folder / name, dice)
        code, said = processes.run(command(recipe, run_folder, out), log)
        lines = [line for line in said.splitlines() if line.strip()]
        told = f"{command.__name__} after {damage.__name__} of {name}: "
        if code == REFUSED:
            refused += 1
            if len(lines) > 2 and command is not resume:  # which names what it sets aside
                offenders.append(told + f"{len(lines)} lines: {lines}")
        elif code != 0:
            offenders.append(told + f"exit code {code}: {said[-600:]}")
        elif result(command, run_folder, out) != expected:
            offenders.append(told + "another result, and nothing said")
    return offenders, refused


@pytest.mark.slow
@pytest.mark.parametrize("command", [resume, sample, export, export_anew, evaluate])
def test_every_file_in_every_way(command, recipe, whole, tmp_path, count):
    names = files_of(whole)
    if command is not export_anew:
        names = [name for name in names if not name.startswith("export")]
    cases = [(name, damage) for name in names for damage in DAMAGES]
    dice = random.Random(command.__name__)
    offenders, refused = damaged(command, recipe, whole, tmp_path / "w", cases=cases, dice=dice)
    count("damaged files", len(cases))
    count("damaged files, refused", refused)
    assert not offenders, "\n".join(offenders)
    assert refused < len(cases)  # and what is refused is not refused for another reason
    assert refused or command in (resume, evaluate)  # which go on from what is sound


def test_a_few_files(recipe, finished, tmp_path, count):
    newest = f"checkpoints/step-{runs.STEPS:08d}"
    cases = [
        (f"{newest}/ema.safetensors", flip),
        (f"{newest}/state.json", cut),
        (f"{newest}/optimizers.safetensors", remove),
        ("config.yaml", empty),
    ]
    for command, some in ((resume, cases[:3]), (sample, cases[::3])):
        dice = random.Random(command.__name__)
        work = tmp_path / command.__name__
        whole = finished(*WATCHED)
        offenders, _ = damaged(command, recipe, whole, work, cases=some, dice=dice)
        assert not offenders, "\n".join(offenders)
        count("damaged files", len(some))
