"""Importing this makes the modules of `tests` and `tools` importable."""

import sys
from pathlib import Path

for _name in ("tests", "tools"):
    sys.path.append(str(Path(__file__).resolve().parents[1] / _name))
