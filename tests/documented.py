"""The model family of docs/add-a-model.md, written and installed as the page says."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from plugin import make_plugin

PAGE = Path(__file__).resolve().parent.parent / "docs" / "add-a-model.md"


def install_family(folder: Path) -> Path:
    """A distribution with the page's family, and `documented_twin`, its tiny twin beside it.

    Returns:
        The folder, to be put on sys.path.
    """
    text = PAGE.read_text(encoding="utf-8")
    family, twin = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    [points] = re.findall(r"```toml\n(.*?)```", text, flags=re.DOTALL)
    ends = tomllib.loads(points)["project"]["entry-points"]
    return make_plugin(folder, ends, {"ovis.py": family, "documented_twin.py": twin})
