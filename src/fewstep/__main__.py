"""``python -m fewstep``: the command line."""

from __future__ import annotations

from fewstep.cli import main

if __name__ == "__main__":
    main()
