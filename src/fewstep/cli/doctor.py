"""`fewstep doctor`: is this machine ready, and if not, what to do."""

from __future__ import annotations

import json
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from fewstep.utils.errors import FewstepError
from fewstep.utils.resources import resolve

PIPELINE = "package://fewstep.toyworld/data/pipeline"
FEATURES = "package://fewstep.toyworld/data/features.safetensors"
PROMPTS = "package://fewstep.toyworld/data/prompts"
RECIPES = "package://fewstep/recipes"
MEMORY_GB, DISK_GB = 4.0, 5.0  # what the demo needs, and some room for runs
REINSTALL = "reinstall: pip install --force-reinstall --no-deps fewstep (or restore the checkout)"


@dataclass(frozen=True)
class Check:
    """One thing looked at.

    Attributes:
        name: What was looked at.
        status: ``ok``, ``warn`` (works, but mind it) or ``fail`` (something will not work).
        found: What was found.
        fix: What to do about it; empty when all is well.
    """

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    fix: str = ""


def examine(folder: Path) -> list[Check]:
    """All checks; none of them raises, and nothing is left behind.

    Args:
        folder: Where runs would be written.
    """
    looks: list[Callable[[], Iterator[Check]]] = [
        _python,
        _libraries,
        _torch,
        lambda: _room(folder),
        lambda: _writable(folder),
        _pipeline,
        _texts,
    ]
    return [check for look in looks for check in look()]


def as_json(checks: list[Check]) -> dict[str, Any]:
    """The checks as one object; ``ok`` is false if any of them failed."""
    healthy = all(check.status != "fail" for check in checks)
    return {"ok": healthy, "checks": [asdict(check) for check in checks]}


def _python() -> Iterator[Check]:
    version = platform.python_version()
    found = f"{version} ({sys.executable})"
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        yield Check("python", "ok", found)
    else:
        yield Check("python", "fail", found, "use Python 3.11, 3.12 or 3.13")


def _libraries() -> Iterator[Check]:
    from packaging.requirements import Requirement

    try:
        lines = metadata.requires("fewstep") or []
    except metadata.PackageNotFoundError:
        yield Check("fewstep", "warn", "runs from its source folder", "pip install -e .")
        return
    yield Check("fewstep", "ok", metadata.version("fewstep"))
    for requirement in map(Requirement, lines):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        fix = f"pip install '{requirement}'"
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield Check(requirement.name, "fail", "not installed", fix)
            continue
        fits = requirement.specifier.contains(version, prereleases=True)
        yield Check(requirement.name, "ok" if fits else "fail", version, "" if fits else fix)


def _torch() -> Iterator[Check]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Check("device", "fail", f"torch does not load: {error}", "reinstall torch")
        return
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        found = f"cuda: {name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
        yield Check("device", "ok", found)
    elif torch.backends.mps.is_available():
        yield Check("device", "ok", "mps (Apple graphics)")
    elif shutil.which("nvidia-smi"):
        fix = "install a torch build for your CUDA driver; this one cannot use the graphics card"
        yield Check("device", "warn", "cpu, though nvidia-smi is here", fix)
    else:
        fix = "enough for the demo; full-size models want a graphics card"
        yield Check("device", "ok", f"cpu, {torch.get_num_threads()} threads", fix)


def _room(folder: Path) -> Iterator[Check]:
    import psutil

    memory = psutil.virtual_memory()
    found = f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free"
    tight = memory.available / 1e9 < MEMORY_GB
    fix = f"close other programs: the demo wants {MEMORY_GB:.0f} GB" if tight else ""
    yield Check("memory", "warn" if tight else "ok", found, fix)
    free = shutil.disk_usage(_existing(folder)).free / 1e9
    tight = free < DISK_GB
    fix = f"make room: runs want {DISK_GB:.0f} GB or more" if tight else ""
    yield Check("disk", "warn" if tight else "ok", f"{free:.1f} GB free", fix)


def _writable(folder: Path) -> Iterator[Check]:
    place = _existing(folder)
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        fix = "run from a folder you may write to, or give --out"
        yield Check("write here", "fail", f"{place}: {error.strerror}", fix)
    else:
        yield Check("write here", "ok", str(place))


def _existing(folder: Path) -> Path:
    return next(place for place in [folder, *folder.parents] if place.exists())


def _pipeline() -> Iterator[Check]:
    try:
        weights, size = check_folder(resolve(PIPELINE))
        check_weights(resolve(FEATURES))
    except (FewstepError, OSError, ValueError) as error:
        yield Check("tiny world", "fail", " ".join(str(error).split()), REINSTALL)
        return
    yield Check("tiny world", "ok", f"{weights} networks, {size / 1e6:.1f} MB, and features")


def check_folder(folder: Path) -> tuple[int, int]:
    """Number and bytes of the weight files of a diffusers folder, after opening every one.

    Raises:
        FewstepError: A component is missing, or a file is truncated or not what its name says.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        raise FewstepError(f"{folder}: no model_index.json", code="missing-file")
    listed = json.loads(index.read_text(encoding="utf-8"))
    parts = [name for name, value in listed.items() if isinstance(value, list) and value[0]]
    for name in parts:
        if not (folder / name).is_dir():
            raise FewstepError(
                f"{folder / name}: missing, though model_index.json names it", code="missing-file"
            )
    for file in folder.rglob("*.json"):
        try:
            json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise FewstepError(f"{file}: not valid JSON: {error}", code="damaged") from error
    weights = sorted(folder.rglob("*.safetensors"))
    if not weights:
        raise FewstepError(f"{folder}: no .safetensors files", code="missing-file")
    return len(weights), sum(map(check_weights, weights))


def check_weights(file: Path) -> int:
    """Bytes of a safetensors file, after opening it.

    Raises:
        FewstepError: It is missing, truncated, or something else.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np") as opened:
            opened.keys()
    except (FileNotFoundError, SafetensorError) as error:
        raise FewstepError(
            f"{file}: missing, truncated or not safetensors: {error}", code="damaged"
        ) from error
    return file.stat().st_size


def _texts() -> Iterator[Check]:
    for name, place, pattern in (("prompts", PROMPTS, "*.txt"), ("recipes", RECIPES, "*.yaml")):
        folder = resolve(place)
        files = sorted(file for file in folder.glob(pattern) if file.stat().st_size > 0)
        if files:
            yield Check(name, "ok", ", ".join(file.name for file in files))
        else:
            yield Check(name, "fail", f"{folder} holds no {pattern}", REINSTALL)
