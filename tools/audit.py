"""Looks up the pinned dependencies (constraints.txt) among published vulnerabilities.

    make audit

pip-audit does it, in an environment that is thrown away afterwards. Exit code 0: every dependency
was looked up and none is affected; 1: some are; 2: not all of them could be looked up, for instance
without a network, so that nothing is known of those.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"
NONE, AFFECTED, UNKNOWN = 0, 1, 2


def main() -> int:
    """Runs the audit and prints what was found."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = next(Path(folder).glob("[bS]*/python*"))  # bin, on Windows Scripts
        pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
        installed = subprocess.run([*pip, "install", "pip-audit"], capture_output=True, check=False)
        if installed.returncode:
            print("audit: pip-audit cannot be installed; nothing was looked up")
            return UNKNOWN
        words = ("--disable-pip", "--no-deps", "--progress-spinner=off", "--format=json")
        command = [str(python), "-m", "pip_audit", *words, "--requirement", str(CONSTRAINTS)]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        dependencies = json.loads(found.stdout)["dependencies"]
    except (ValueError, KeyError):
        last = found.stderr.strip().splitlines()[-1:] or ["pip-audit says nothing"]
        print(f"audit: the advisory service cannot be reached; nothing was looked up: {last[0]}")
        return UNKNOWN
    code, lines = verdict(dependencies)
    print("\n".join(lines))
    return code


def verdict(dependencies: Sequence[Mapping[str, Any]]) -> tuple[int, list[str]]:
    """Exit code and lines for what pip-audit reports.

    Args:
        dependencies: For each ``name``, ``version`` and ``vulns``, or ``skip_reason``.
    """
    lines = [
        f"{each['name']} {each['version']}: {problem['id']}, mended in "
        f"{', '.join(problem['fix_versions']) or 'no version yet'}"
        for each in dependencies
        for problem in each.get("vulns", [])
    ]
    skipped = [each["name"] for each in dependencies if "skip_reason" in each]
    looked_up = len(dependencies) - len(skipped)
    summary = f"audit: {looked_up} of {len(dependencies)} looked up, {len(lines)} vulnerabilities"
    if not looked_up:
        summary += "; the advisory service cannot be reached or knows none of them"
    elif skipped:
        summary += f"; not looked up: {', '.join(skipped)}"
    code = AFFECTED if lines else UNKNOWN if skipped or not dependencies else NONE
    return code, [*lines, summary]


if __name__ == "__main__":
    sys.exit(main())
