"""Whatever has its name is on the disk: the order in which a real run syncs and renames.

A file system may keep names and contents in memory for a while, and may write them in any order, so
that after a power loss a name can be there without its content. The order that excludes this: sync
the files, sync their folder, rename, sync the folder that holds the new name; only then remove what
the new one replaces.
"""

from __future__ import annotations

import json
import os
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from faults import processes, runs


def trace(to: Path) -> None:
    """Makes this process write down what it syncs, renames and makes, and what it finds then."""
    log = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    real = os.fsync

    def tell(**event: object) -> None:
        os.write(log, (json.dumps(event) + "\n").encode())

    def fsync(handle: int) -> None:
        real(handle)
        tell(what="sync", inode=os.fstat(handle).st_ino, at=time.time_ns())

    def hook(event: str, arguments: tuple) -> None:
        if event == "os.rename":
            source, target = (os.path.abspath(os.fspath(each)) for each in arguments[:2])
            found = [source, *(each for each in map(str, Path(source).rglob("*")))]
            there = {each: (os.stat(each).st_ino, os.stat(each).st_mtime_ns) for each in found}
            folder = os.stat(os.path.dirname(target)).st_ino
            tell(what="rename", source=source, target=target, there=there, folder=folder)
        elif event == "os.mkdir":
            path = os.path.abspath(os.fspath(arguments[0]))
            tell(what="mkdir", target=path, folder=os.stat(os.path.dirname(path)).st_ino)

    os.fsync = fsync
    sys.addaudithook(hook)


def events_of(words: list[str], work: Path) -> list[dict]:
    log = work / "trace"
    code, said = processes.run(words, work / "log", before=partial(trace, log))
    assert code == 0, said
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def is_seal(event: dict, under: Path) -> bool:
    """Whether an event gives a visible name to something below a folder."""
    if event["what"] != "rename":
        return False
    target = Path(event["target"])
    return target.is_relative_to(under) and not target.name.startswith(".")


def assert_on_the_disk(events: list[dict], under: Path) -> int:
    """The order above, for all that gets a name below a folder; returns how many did."""
    synced: dict[int, int] = {}
    seals = 0
    for number, event in enumerate(events):
        if event["what"] == "sync":
            synced[event["inode"]] = event["at"]
        elif is_seal(event, under):
            seals += 1
            for name, (inode, changed) in event["there"].items():
                assert synced.get(inode, 0) >= changed, f"{name} is not synced when it is named"
            later = events[number + 1 :]
            until = next(
                (n for n, each in enumerate(later) if each["what"] == "rename"), len(later)
            )
            own = [each["inode"] for each in later[:until] if each["what"] == "sync"]
            assert event["folder"] in own, f"the name {event['target']} is not synced"
    return seals


def assert_folders_on_the_disk(events: list[dict], under: Path) -> None:
    """Folders that were made to hold something are there after a power loss, too."""
    for number, event in enumerate(events):
        if event["what"] == "mkdir" and Path(event["target"]).name[0] != ".":
            if not Path(event["target"]).is_relative_to(under):
                continue
            later = [each["inode"] for each in events[number:] if each["what"] == "sync"]
            assert event["folder"] in later, f"the folder {event['target']} is not synced"


@pytest.mark.parametrize("beside", ["false", "true"])
def test_checkpoints(beside, recipe, tmp_path, count):
    overrides = f"checkpoint.asynchronous={beside}", "checkpoint.keep_last=2", "train.steps=4"
    events = events_of(runs.distill(recipe, tmp_path / "a" / "run", *overrides), tmp_path)
    checkpoints = tmp_path / "a" / "run" / "checkpoints"
    named = assert_on_the_disk(events, checkpoints)
    assert named >= 4
    count("names given after their content was synced", named)
    assert_folders_on_the_disk(events, tmp_path / "a" / "run")
    removed = [n for n, e in enumerate(events) if ".unfinished-gone" in e.get("target", "")]
    assert len(removed) == 2  # after the new ones have their names, see above


def test_encoded_prompts(recipe, tmp_path, count):
    prompts, model = recipe.parent / "prompts.txt", recipe.parent / "model"
    words = ["encode", str(prompts), "--model", str(model), "--out", str(tmp_path / "encoded")]
    named = assert_on_the_disk(events_of(words, tmp_path), tmp_path / "encoded")
    assert named >= 2
    count("names given after their content was synced", named)


def test_exports(recipe, finished, tmp_path, count):
    words = ["export", str(finished()), "--out", str(tmp_path / "out")]
    named = assert_on_the_disk(events_of(words, tmp_path), tmp_path)
    assert named >= 1
    count("names given after their content was synced", named)
