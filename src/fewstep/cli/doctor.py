"""`fewstep doctor`: is this machine ready, and if not, what to do."""

from __future__ import annotations

import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from fewstep.utils.checks import Check, check_room
from fewstep.utils.registry import Registry

DISK_GB = 5.0  # room for runs
CHECKS = Registry[Callable[[], Iterator[Check]]]("check", "fewstep.checks")


def examine(folder: Path, more: Sequence[str] = ()) -> dict[str, Any]:
    """All checks as one object, ``ok`` if none failed; none of them raises or leaves anything.

    Args:
        folder: Where runs would be written.
        more: Names of further checks, by entry points of group ``fewstep.checks``.

    Raises:
        FewstepError: There is no such check.
    """
    looks = [
        _python(),
        _libraries(),
        _torch(),
        _room(folder),
        *(CHECKS.get(name)() for name in more),
    ]
    checks = [asdict(check) for look in looks for check in look]
    return {"ok": all(check["status"] != "fail" for check in checks), "checks": checks}


def _python() -> Iterator[Check]:
    fits = (3, 11) <= sys.version_info[:2] <= (3, 13)
    fix = "" if fits else "use Python 3.11, 3.12 or 3.13"
    found = f"{platform.python_version()} ({sys.executable})"
    yield Check("python", "ok" if fits else "fail", found, fix)


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
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            version = ""
        fits = bool(version) and requirement.specifier.contains(version, prereleases=True)
        fix = "" if fits else f"pip install '{requirement}'"
        yield Check(requirement.name, "ok" if fits else "fail", version or "not installed", fix)


def _torch() -> Iterator[Check]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Check("device", "fail", f"torch does not load: {error}", "reinstall torch")
        return
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        memory = f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free"
        yield Check("device", "ok", f"cuda: {torch.cuda.get_device_name()}, {memory}")
    elif torch.backends.mps.is_available():
        yield Check("device", "ok", "mps (Apple graphics)")
    elif shutil.which("nvidia-smi"):
        fix = "install a torch build for your CUDA driver; this one cannot use the graphics card"
        yield Check("device", "warn", "cpu, though nvidia-smi is here", fix)
    else:
        fix = "enough for small models; full-size ones want a graphics card"
        yield Check("device", "ok", f"cpu, {torch.get_num_threads()} threads", fix)


def _room(folder: Path) -> Iterator[Check]:
    import psutil

    memory = psutil.virtual_memory()
    found = f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free"
    yield Check("memory", "ok", found)
    place = next(place for place in [folder, *folder.parents] if place.exists())
    fix = f"make room: runs want {DISK_GB:.0f} GB or more"
    yield check_room("disk", shutil.disk_usage(place).free, DISK_GB, fix)
    try:
        with tempfile.TemporaryFile(dir=place):
            yield Check("write here", "ok", str(place))
    except OSError as error:
        fix = "run from a folder you may write to, or give --out"
        yield Check("write here", "fail", f"{place}: {error.strerror}", fix)
