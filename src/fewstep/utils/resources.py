"""Paths to files, whether on disk or shipped inside an installed package."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from fewstep.utils.errors import FewstepError

SCHEME = "package://"
_MOVED = {"fewstep.world": "fewstep.toyworld"}
"""Packages under the names that older run folders know them by."""


def resolve(path: str | Path) -> Path:
    """Path on disk of a file or folder, which need not exist.

    ``package://fewstep.toyworld/data/pipeline`` is ``data/pipeline`` inside the installed package
    ``fewstep.toyworld``; everything else is an ordinary path, ``~`` included.

    Args:
        path: What the user wrote.

    Raises:
        FewstepError: The package is not installed, or there is no such user.
    """
    text = str(path)
    if not text.startswith(SCHEME):
        return expand(path)
    package, _, inside = current_address(text).removeprefix(SCHEME).partition("/")
    try:
        return Path(str(resources.files(package))) / inside
    except (ImportError, TypeError, ValueError) as error:
        raise FewstepError(
            f"{text}: package {package!r} is not installed", code="missing-dependency"
        ) from error


def expand(path: str | Path) -> Path:
    """An ordinary path, with ``~`` and ``~name`` as the shell has them.

    Raises:
        FewstepError: There is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise FewstepError(f"{path}: there is no such user; check the path") from error


def current_address(text: str) -> str:
    """A ``package://`` address under the package's present name; other texts as they are."""
    package, slash, inside = text.removeprefix(SCHEME).partition("/")
    if not text.startswith(SCHEME) or package not in _MOVED:
        return text
    return f"{SCHEME}{_MOVED[package]}{slash}{inside}"
