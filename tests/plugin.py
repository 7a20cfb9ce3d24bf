"""A distribution outside the source tree that adds to open ends, as an installed package would."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def make_plugin(
    folder: Path,
    entry_points: Mapping[str, Mapping[str, str]],
    modules: Mapping[str, str],
    *,
    name: str = "fewstep_plugin",
) -> Path:
    """Writes modules and a ``.dist-info`` with entry points; the folder then goes on sys.path.

    In a test: ``monkeypatch.syspath_prepend(make_plugin(...))``, for a subprocess PYTHONPATH. Names
    of modules must differ between tests of one process, as Python imports each only once.

    Args:
        folder: Where to; made if need be.
        entry_points: Group -> name -> ``module:attribute``.
        modules: File name, such as ``my_metric.py`` -> its source.
        name: The distribution's.

    Returns:
        The folder.
    """
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = []
    for group, members in entry_points.items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in members.items()), ""]
    (info / "entry_points.txt").write_text("\n".join(lines))
    for file, source in modules.items():
        (folder / file).write_text(source, encoding="utf-8")
    return folder
