"""Exit 0 when the running Python holds all that pyproject.toml declares, dev extra included.

Prints what is missing otherwise. Uses the standard library and, if there, ``packaging``.
"""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path


def missing(pyproject: Path) -> list[str]:
    """The declared requirements that this environment does not satisfy.

    Args:
        pyproject: path of pyproject.toml.

    Returns:
        Requirement strings, each with what was found instead.
    """
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    found = []
    for requirement in map(Requirement, lines):
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            found.append(f"{requirement}: not installed")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            found.append(f"{requirement}: found {version}")
    return found


def main() -> int:
    """Check, print what is missing, return the exit status."""
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        print(f"Python 3.11 to 3.13 is needed, this is {sys.version.split()[0]}")
        return 1
    try:
        lacks = missing(Path(__file__).resolve().parent.parent / "pyproject.toml")
    except ImportError as error:
        lacks = [str(error)]
    print("\n".join(lacks) or "complete")
    return 1 if lacks else 0


if __name__ == "__main__":
    sys.exit(main())
