"""A disk that is full, or may not be written to, at every kind of write.

A command that cannot write what it was asked for exits with code 2 and one line. What was there
before is as it was, what is sealed is sound, nothing half-written stays, and with room again the
result is bitwise the one of a run that nothing happened to. What a run can do without (a line of
metrics, a preview) does not end it.

Full disks are small file systems in memory where this user may mount them; everywhere, a limit on
the size of files, which the system refuses by an error of its own.
"""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from faults import processes, runs
from faults.test_damage import bytes_of

USER = 2
PLAIN = ("checkpoint.every=2", "checkpoint.keep_last=2", "preview.every=2", "train.steps=6")
ALL = ("checkpoint.keep_last=100",)


def mounted(*words: str) -> bool:
    """Runs mount or umount; whether that worked."""
    return not subprocess.run(words, capture_output=True, check=False).returncode


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Callable[[], None]]:
    """Context with a file system of a size; yields what makes it large."""
    folder.mkdir()
    if not mounted("mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(folder)):
        pytest.skip("this user may not mount")
    try:
        yield lambda: mounted("mount", "-o", "remount,size=200m", str(folder))
    finally:
        mounted("umount", str(folder))


@contextmanager
def small_files(size: int) -> Iterator[Callable[[], None]]:
    """Stands in for a small disk: `limit` for the child, nothing to enlarge afterwards."""
    yield partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size))


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Context in which nothing below a folder can be written."""
    if os.geteuid():
        paths = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
        for path in paths:
            path.chmod(0o555)
    elif not mounted("mount", "--bind", str(folder), str(folder)):
        pytest.skip("root here may write everywhere, and may not mount")
    else:
        mounted("mount", "-o", "remount,ro,bind", str(folder))
    try:
        yield
    finally:
        if os.geteuid():
            for path in paths:
                path.chmod(0o755)
        else:
            mounted("umount", str(folder))


def assert_told(code: int, said: str, place: object = "") -> None:
    """Refused in one line, which names the place."""
    assert code == USER, said
    assert "Traceback" not in said
    assert str(place) in said.splitlines()[-1], said


def assert_nothing_half_written(folder: Path) -> None:
    assert not [*folder.rglob("*.tmp"), *folder.rglob(".unfinished-*")]


def survives(recipe: Path, folder: Path, reference: Path, code: int, said: str) -> bool:
    """What a run left is sound; whether it got to its end."""
    assert code in (0, USER), said
    assert "Traceback" not in said, said
    for step in runs.sealed(folder):
        runs.assert_same(folder, reference, step)
    assert_nothing_half_written(folder)
    if code:
        assert str(folder) in said.splitlines()[-1], said
    else:
        assert runs.sealed(folder)[-1] == 6
    return code == 0


def distilled(recipe: Path, folder: Path, log: Path, **how) -> tuple[int, str]:
    resume = bool(runs.sealed(folder))
    return processes.run(runs.distill(recipe, folder, *PLAIN, resume=resume), log, **how)


@pytest.mark.parametrize(
    "size", [*(pytest.param(n, marks=pytest.mark.slow) for n in (1500, 3000, 12000, 25000)), 8000]
)
def test_distill_where_files_must_be_small(size, recipe, finished, tmp_path, count):
    """Checkpoints, metrics and previews fail one after the other as the limit falls."""
    folder, reference = tmp_path / "run", finished(*PLAIN, *ALL)
    with small_files(size) as limit:
        code, said = distilled(recipe, folder, tmp_path / "log", before=limit)
    if not survives(recipe, folder, reference, code, said):
        code, said = distilled(recipe, folder, tmp_path / "log")
        assert code == 0, said
    runs.assert_same(folder, reference, 6)
    count("full disks")


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [4, 8, 16, 32, 64, 90, 120, 160, 200, 300, 500])
def test_distill_on_a_full_disk(kilobytes, recipe, finished, tmp_path, count):
    """Full at the start, within a checkpoint, between them; resumed while full, then with room."""
    reference = finished(*PLAIN, *ALL)
    with small_disk(tmp_path / "disk", kilobytes) as enlarge:
        folder = tmp_path / "disk" / "run"
        for _ in range(2):
            code, said = distilled(recipe, folder, tmp_path / "log")
            if survives(recipe, folder, reference, code, said):
                break
        else:
            enlarge()
            code, said = distilled(recipe, folder, tmp_path / "log")
            assert code == 0, said
        runs.assert_same(folder, reference, 6)
        assert runs.recorded(folder)[-1] == 6
    count("full disks")


OTHERS = {
    "sample": lambda recipe, run, out: ["sample", run, "--prompt", "a red ring", "--out", out],
    "export": lambda recipe, run, out: ["export", run, "--out", out],
    "export --merge": lambda recipe, run, out: ["export", run, "--merge", "--out", out],
    "encode": lambda recipe, run, out: [
        "encode", recipe.parent / "prompts.txt", "--model", recipe.parent / "model", "--out", out,
    ],
}  # fmt: skip
INSIDE = {  # what is written into the run folder itself
    "evaluate": lambda recipe, run: ["evaluate", run],
    "export": lambda recipe, run: ["export", run],
}


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [4, 8, 40])
@pytest.mark.parametrize("name", OTHERS)
def test_others_on_a_full_disk(name, kilobytes, recipe, finished, tmp_path, count):
    """One line, nothing half-written; with room the same command succeeds."""
    mode = "lora" if "merge" in name else "full"
    run_folder = finished(*PLAIN, f"student={runs.MODES[mode]}")
    with small_disk(tmp_path / "disk", kilobytes) as enlarge:
        out = tmp_path / "disk" / "out"
        words = OTHERS[name](recipe, run_folder, out)
        code, said = processes.run(words, tmp_path / "log")
        if code:
            assert_told(code, said, out.parent)
            assert_nothing_half_written(out.parent)
            enlarge()
            code, said = processes.run(words, tmp_path / "log")
        assert code == 0, said
        assert bytes_of(out)
    count("full disks")


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [0, 8])
@pytest.mark.parametrize("name", INSIDE)
def test_run_folders_on_a_full_disk(name, kilobytes, recipe, finished, tmp_path, count):
    """What is in the run folder stays, bit for bit, when something cannot be added."""
    with small_disk(tmp_path / "disk", 200_000) as _:
        run_folder = processes.copied(finished(*PLAIN), tmp_path / "disk" / "run")
        before, filler = bytes_of(run_folder), tmp_path / "disk" / "filler"
        disk = os.statvfs(run_folder)
        with filler.open("wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, disk.f_bavail * disk.f_bsize - kilobytes * 1024)
        words = INSIDE[name](recipe, run_folder)
        code, said = processes.run(words, tmp_path / "log")
        if code:
            assert_told(code, said, run_folder)
        after = bytes_of(run_folder)
        assert {name: after.get(name) for name in before} == before
        assert_nothing_half_written(run_folder)
        filler.unlink()
        code, said = processes.run(words, tmp_path / "log")
        assert code == 0, said
    count("full disks")


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_small_files_of_others(name, recipe, finished, tmp_path, count):
    """The same by a limit on files, for whoever may not mount; what was there before stays."""
    run_folder, out = finished(*PLAIN), tmp_path / "out"
    words = OTHERS[name](recipe, run_folder, out)
    assert processes.run(words, tmp_path / "log")[0] == 0
    before = bytes_of(out)
    for size in (600, 2500):
        with small_files(size) as limit:
            code, said = processes.run(words, tmp_path / "log", before=limit)
        if code:
            assert_told(code, said, tmp_path)
        if name.startswith("export"):
            assert bytes_of(out) == before
        assert_nothing_half_written(tmp_path)
    count("full disks", 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*OTHERS, *(f"{name} inside" for name in INSIDE), "new", "resume"])
def test_read_only(name, recipe, finished, tmp_path, count):
    """One line, in time; and nothing has changed."""
    folder = tmp_path / "there"
    run_folder = processes.copied(finished(*PLAIN), folder / "run")
    if name in OTHERS:
        words = OTHERS[name](recipe, run_folder, folder / "out")
    elif name == "new":
        words = runs.distill(recipe, folder / "new", *PLAIN)
    elif name == "resume":
        words = runs.distill(recipe, run_folder, *PLAIN, "train.steps=8", resume=True)
    else:
        words = INSIDE[name.removesuffix(" inside")](recipe, run_folder)
    before = bytes_of(folder)
    with read_only(folder):
        code, said = processes.run(words, tmp_path / "log")
    assert_told(code, said, folder)
    assert bytes_of(folder) == before
    count("read-only folders")


def test_what_is_read_may_be_read_only(recipe, finished, tmp_path, count):
    """A run on a read-only disk is sampled and exported to another place."""
    run_folder = processes.copied(finished(*PLAIN), tmp_path / "there" / "run")
    with read_only(run_folder):
        for name in ("sample", "export"):
            words = OTHERS[name](recipe, run_folder, tmp_path / name)
            code, said = processes.run(words, tmp_path / "log")
            assert code == 0, said
    for file in (tmp_path / "export").rglob("*"):
        assert file.stat().st_mode & 0o200  # and what was written can be written again
    count("read-only folders")
