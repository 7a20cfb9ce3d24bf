"""What many prompts cost before the first step: ``python bench/prompts.py [--counts 4096 100000]``.

Each count runs `fewstep distill` for two iterations on the embedded pipeline, in a process of its
own, with a file of so many distinct prompts. Seconds are wall time: up to the line that begins the
run, and in all; memory is the largest that was resident.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import paths  # noqa: F401

from fewstep.utils.hardware import describe

RECIPE = Path(__file__).parent.parent / "tests" / "faults" / "recipe.yaml"
_STARTS = "step 0 of"


def main() -> None:
    """Prints the figures of each count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[4096, 100_000, 1_000_000])
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    rows = []
    for count in asked.counts:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(Path(folder), count, asked.settings))
        if not asked.json:
            print(", ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    if asked.json:
        print(json.dumps({"hardware": describe(), "settings": asked.settings, "rows": rows}))


def measure(folder: Path, count: int, settings: list[str]) -> dict[str, float]:
    """Runs one count in a folder; the figures."""
    file = folder / "prompts.txt"
    with file.open("w") as stream:
        stream.writelines(
            f"a photograph of a red circle, number {i}, beside a small green square and a blue "
            "ring on a wooden table, soft light from the left\n"
            for i in range(count)
        )
    sets = ["train.steps=2", f"data.prompts={file}", *settings]
    command = [
        sys.executable,
        "-m",
        "fewstep",
        "distill",
        str(RECIPE),
        "--out",
        str(folder / "run"),
    ]
    command += [word for each in sets for word in ("--set", each)]
    began, started = time.perf_counter(), 0.0
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if _STARTS in line.decode():
                started = time.perf_counter() - began
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - began
    memory = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
    return {
        "prompts": count,
        "exit": process.returncode,
        "seconds to step 0": round(started, 1),
        "seconds": round(seconds, 1),
        "CPU seconds": round(used.ru_utime + used.ru_stime, 1),
        "memory, GB": round(memory, 2),
    }


if __name__ == "__main__":
    main()
