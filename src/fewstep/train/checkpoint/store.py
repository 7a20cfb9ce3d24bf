"""Checkpoints: folders of safetensors and JSON that are written whole or not at all.

A checkpoint is written under a hidden name, synced to the disk, and renamed. state.json holds the
SHA-256 of every other file and of itself, so that damage is found before anything is loaded. A
single process writes one file per group of tensors; several write their shards, see
`train.distributed`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewstep.train import distributed
from fewstep.train.checkpoint.schema import (
    FORMAT,
    SHARDED,
    BrokenCheckpointError,
    Checkpoint,
    Groups,
    Sealed,
)
from fewstep.train.distributed import Like
from fewstep.train.roles import STUDENT
from fewstep.utils.disk import writing
from fewstep.utils.errors import FewstepError, unknown
from fewstep.utils.files import (
    damaged_files,
    fsync,
    read_text,
    remove,
    settle,
    sha256_of,
    write_text,
)

_STATE = "state.json"
_NAMED = ("best", "last")
_PREFIX, _HIDDEN, _BROKEN = "step-", ".unfinished-", "broken-"
_STEP = re.compile(rf"{_PREFIX}\d{{8,}}")


def save(folder: Path, step: int, groups: Groups, state: Mapping[str, Any]) -> Path:
    """Saves a checkpoint of a step, in the place of one of the same step.

    Args:
        folder: The run's ``checkpoints``.
        step: Finished iterations.
        groups: Group -> name -> tensor; one file per group.
        state: Anything JSON can hold; ``step`` is added.

    Returns:
        The checkpoint's folder.

    Raises:
        WriteFailed: The disk refuses; nothing of it is left, and all others are as they were.
    """
    needed = sum(tensor.nbytes for tensors in groups.values() for tensor in tensors.values())
    with writing(folder / _name(step), needed=needed):
        temporary = begin(folder, step)
        try:
            for group, tensors in groups.items():
                whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
                save_file(whole, temporary / f"{group}.safetensors")
            sums = sums_of(temporary.glob("*.safetensors"))
            return seal(temporary, {"format": FORMAT, "step": step, **state, "files": sums})
        except BaseException:
            with suppress(OSError):
                remove(temporary)
            raise


def begin(folder: Path, step: int) -> Path:
    """Makes an empty folder to write a step's checkpoint to, under its hidden name."""
    temporary = unfinished(folder, step)
    clear_unfinished(folder)
    temporary.mkdir(parents=True)
    return temporary


def unfinished(folder: Path, step: int) -> Path:
    """Path of a step's checkpoint while it is being written."""
    return folder / f"{_HIDDEN}{_name(step)}"


def _name(step: int) -> str:
    return f"{_PREFIX}{step:08d}"


def sums_of(files: Iterable[Path]) -> dict[str, str]:
    """Syncs files to the disk; returns file name -> SHA-256."""
    sums = {}
    for file in sorted(files):
        sums[file.name] = sha256_of(file)
        fsync(file)
    return sums


def seal(temporary: Path, content: Mapping[str, Any]) -> Path:
    """Finishes a checkpoint whose tensors are written: adds state.json and gives it its name."""
    final = temporary.with_name(temporary.name.removeprefix(_HIDDEN))
    with writing(final):
        text = json.dumps({**content, "sha256": _digest(content)}, indent=1)
        write_text(temporary / _STATE, text)
        settle(temporary)
        if final.exists():
            _remove(final)
        temporary.rename(final)
        fsync(final.parent)
        with suppress(OSError):  # the run's folder and the one around it, which may be new
            for each in final.parents[1:3]:
                fsync(each)
    return final


def check(path: Path, schema: type[Sealed] = Sealed) -> Checkpoint:
    """A checkpoint with every file checked against its SHA-256; its tensors are not read yet.

    Args:
        path: Its folder.
        schema: What state.json must hold.

    Raises:
        BrokenCheckpointError: A file is missing, truncated or changed.
    """
    state = read_state(path, schema)
    _refuse_damaged(path, state["files"])
    return Checkpoint(path, state, {})


def load(path: Path) -> Checkpoint:
    """Reads a checkpoint, with every file checked against its SHA-256 first.

    Raises:
        BrokenCheckpointError: A file is missing, truncated or changed.
    """
    return read(check(path))


def read(validated: Checkpoint, like: Like | None = None) -> Checkpoint:
    """Reads the tensors of a checkpoint, whole or sharded.

    Args:
        validated: What `check` returned.
        like: ``like("group/name")`` is a tensor sharded as that one is to be, None for a whole one;
            without `like` all are whole.

    Raises:
        BrokenCheckpointError: A file cannot be read.
    """
    groups: dict[str, dict[str, Tensor]] = {}
    path, state = validated.path, validated.state
    try:
        if state["format"] == SHARDED:
            for key, tensor in distributed.read_shards(path, like).items():
                group, _, name = key.partition("/")
                groups.setdefault(group, {})[name] = tensor
        else:
            for file in state["files"]:
                group = file.removesuffix(".safetensors")
                groups[group] = {
                    name: distributed.split_like(tensor, like and like(f"{group}/{name}"))
                    for name, tensor in load_file(path / file).items()
                }
    except SafetensorError as error:
        raise _broken(path, str(error)) from error
    return replace(validated, groups=groups)


def student_weights(path: Path, *, raw: bool = False) -> dict[str, Tensor]:
    """The student's weights in a checkpoint, float32: their EMA if the run kept one, or `raw`.

    Raises:
        BrokenCheckpointError: The file is missing, truncated or changed.
    """
    state = read_state(path)
    if state["format"] == SHARDED:
        check(path)
        ema = {} if raw else distributed.read_shards(path, prefix="ema/")
        weights = ema or distributed.read_shards(path, prefix=f"{STUDENT}/")
        return {key.partition("/")[2]: tensor for key, tensor in weights.items()}
    sums = state["files"]
    file = "student.safetensors" if raw or "ema.safetensors" not in sums else "ema.safetensors"
    _refuse_damaged(path, {file: sums.get(file, "")})
    try:
        return load_file(path / file)
    except SafetensorError as error:
        raise _broken(path, f"{file}: {error}") from error


def _refuse_damaged(path: Path, sums: Mapping[str, str]) -> None:
    if damaged := damaged_files(path, sums):
        raise _broken(path, f"{damaged[0]} is missing or damaged")


def _broken(path: Path, what: str) -> BrokenCheckpointError:
    return BrokenCheckpointError(f"{path.name}: {what}")


def read_state(path: Path, schema: type[Sealed] = Sealed) -> dict[str, Any]:
    """A checkpoint's state.json, validated.

    Args:
        path: The checkpoint's folder.
        schema: What it must hold.

    Raises:
        BrokenCheckpointError: It is missing, damaged, or of another format.
    """
    try:
        text = read_text(path / _STATE)
        schema.model_validate_json(text)
    except ValidationError as error:
        found = error.errors()[0]
        if found["loc"] == ("format",) and isinstance(found["input"], int):
            raise BrokenCheckpointError(
                f"{path.name}: written by another version of fewstep", code="version"
            ) from error
        where = ".".join(map(str, found["loc"]))
        raise _broken(
            path, f"{_STATE} is damaged ({where} {found['msg']})".replace("( ", "(")
        ) from error
    except FewstepError as error:
        raise _broken(path, f"{_STATE} is missing or damaged") from error
    content: dict[str, Any] = json.loads(text)
    if _digest(content) != content.pop("sha256", None):
        raise _broken(path, f"{_STATE} is damaged")
    return content


def listed(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first, whether sound or damaged."""
    named = (path for path in folder.glob(f"{_PREFIX}*") if _STEP.fullmatch(path.name))
    return sorted(path for path in named if path.is_dir())


def newest(
    folder: Path, read_one: Callable[[Path], Checkpoint] = load
) -> tuple[Checkpoint | None, dict[Path, str]]:
    """The newest sound checkpoint, and what is wrong with each newer one.

    Args:
        folder: The run's ``checkpoints``.
        read_one: `load`, or `check` to leave the tensors for later.
    """
    broken: dict[Path, str] = {}
    for path in reversed(listed(folder)):
        try:
            return read_one(path), broken
        except BrokenCheckpointError as error:
            broken[path] = str(error)
    return None, broken


def set_aside(path: Path) -> Path:
    """Renames a damaged checkpoint, so that nothing takes it for one later; returns its new path.

    Raises:
        WriteFailed: It cannot be renamed.
    """
    aside = path.with_name(f"{_BROKEN}{path.name}")
    with writing(aside):
        remove(aside)
        path.rename(aside)
    return aside


def find(run_folder: Path, which: str | int = "best") -> Path:
    """Folder of one of a run's checkpoints.

    Args:
        run_folder: The run.
        which: ``best`` (highest preview score of the healthy ones; the newest where none was
            scored), ``last``, or a step number.

    Raises:
        FewstepError: There is no such checkpoint, it is not healthy, or one that may be the best
            cannot be read.
    """
    paths = listed(run_folder / "checkpoints")
    if isinstance(which, str) and which not in _NAMED:
        raise unknown("checkpoint", which, _NAMED)
    if isinstance(which, int):
        paths = [path for path in paths if path.name == _name(which)]
    if not paths:
        raise FewstepError(f"{run_folder}: there is no checkpoint ({which})", code="missing-file")
    # Of all, as one that cannot be read might be the best.
    states = {path: read_state(path) for path in (paths if which == "best" else paths[-1:])}
    sound = healthy(run_folder / "checkpoints")
    path = paths[-1]
    if which == "best" and sound:
        path = max(sound, key=lambda each: (_score(each), each.name))
    if reason := states[path].get("unhealthy"):
        raise FewstepError(
            f"{path}: the run was not healthy there: {reason}; {way_out(run_folder)}",
            code="diverged",
        )
    return path


def unhealthy(path: Path) -> str:
    """Why a checkpoint is not to be used, as the run noted; empty if nothing was wrong."""
    try:
        return str(read_state(path).get("unhealthy") or "")
    except BrokenCheckpointError as error:
        return str(error)


def healthy(folder: Path) -> list[Path]:
    """Checkpoints of which nothing bad is known, oldest first.

    What was saved shortly before a fault was noticed is left out too: back to where the run was
    known to be sound.
    """
    found: list[Path] = []
    until = float("inf")
    for path in reversed(listed(folder)):
        if unhealthy(path):
            with suppress(BrokenCheckpointError):
                sound = read_state(path).get("sound_until")
                until = until if sound is None else min(until, sound)
        elif step_of(path) <= until:
            found.insert(0, path)
    return found


def newest_healthy(folder: Path) -> Path | None:
    """The newest healthy checkpoint; None: there is none."""
    return next(reversed(healthy(folder)), None)


def way_out(run_folder: Path) -> str:
    """What to do about an unhealthy checkpoint, or a run that came apart."""
    newest = newest_healthy(run_folder / "checkpoints")
    if newest is None:
        return "there is no healthy checkpoint; start another run at lower rates"
    step = step_of(newest)
    return (
        f"the newest healthy checkpoint is {newest.name}: use it by --which {step}, or train on "
        f"from it at lower rates by --resume-from {step}"
    )


def step_of(path: Path) -> int:
    """Step of a checkpoint's folder."""
    return int(path.name.removeprefix(_PREFIX))


def prune(folder: Path, *, keep_last: int, keep_best: int) -> None:
    """Removes all checkpoints but the newest ones and those with the highest scores.

    The newest healthy one stays in any case, and healthy ones count as better than others.
    """
    paths = listed(folder)
    scored = [path for path in paths if _score(path) > float("-inf")]
    sound = healthy(folder)
    best = sorted(scored, key=lambda each: (each in sound, _score(each), each.name))
    kept = [*paths[-keep_last:], *best[max(len(best) - keep_best, 0) :], *sound[-1:]]
    for path in paths:
        if path not in kept:
            _remove(path)


def clear_unfinished(folder: Path) -> None:
    """Removes what a killed run was in the middle of writing or removing."""
    for path in folder.glob(f"{_HIDDEN}*"):
        remove(path)


def _score(path: Path) -> float:
    try:
        score = read_state(path).get("score")
    except BrokenCheckpointError:
        score = None
    return float("-inf") if score is None else float(score)


def _remove(path: Path) -> None:
    """Removes a folder; its name goes first, so that a half-removed one never looks finished."""
    hidden = path.with_name(f"{_HIDDEN}gone-{path.name}")
    path.rename(hidden)
    remove(hidden)


def _digest(content: Mapping[str, Any]) -> str:
    # As it will be read back: keys that are numbers become text, which sorts in another order.
    as_read = json.loads(json.dumps({**content, "sha256": None}))
    del as_read["sha256"]
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()
