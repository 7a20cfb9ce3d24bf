"""Complete runs as YAML, shipped with the package; `find` gets one by name."""

from __future__ import annotations

from pathlib import Path

from fewstep.utils.errors import FewstepError, did_you_mean

FOLDER = Path(__file__).resolve().parent


def available() -> list[str]:
    """Names of the recipes that ship with the package, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find(name: str) -> Path:
    """The recipe file of a path, or of the name of a recipe that ships with the package.

    Raises:
        FewstepError: There is neither; names the nearest recipe.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if name in available():
        return FOLDER / f"{name}.yaml"
    raise FewstepError(
        f"{name}: no such recipe file, nor a shipped one; {_hint(name)}", code="missing-file"
    )


def _hint(name: str) -> str:
    return did_you_mean(Path(name).stem, available())
