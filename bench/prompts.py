"""What many prompts cost before the first step: ``python bench/prompts.py [--counts 4096 100000]``.

Each count runs `fewstep distill` for two iterations on the embedded pipeline, in a process of its
own, with a file of so many distinct prompts. Seconds are wall time: up to the line that begins the
run, and in all; memory is the largest that was resident.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import paths  # noqa: F401

RECIPE = Path(__file__).parent.parent / "tests" / "faults" / "recipe.yaml"
_STARTS = "step 0 of"


def main() -> None:
    """Prints a row for each count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[4096, 100_000, 1_000_000])
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    asked = parser.parse_args()
    print(f"{'prompts':>9} {'to step 0, s':>13} {'in all, s':>10} {'CPU, s':>7} {'memory, GB':>11}")
    for count in asked.counts:
        with tempfile.TemporaryDirectory() as folder:
            print(f"{count:>9,} " + measure(Path(folder), count, asked.settings), flush=True)


def measure(folder: Path, count: int, settings: list[str]) -> str:
    """Runs one count in a folder; the figures as a row."""
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
    if process.returncode:
        return f"exit {process.returncode} after {seconds:.0f} s"
    cpu = used.ru_utime + used.ru_stime
    memory = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
    return f"{started:>13.1f} {seconds:>10.1f} {cpu:>7.1f} {memory:>11.2f}"


if __name__ == "__main__":
    main()
