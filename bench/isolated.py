"""Parts of a measurement, each in a process of its own that is ended when its time is over.

A part that fails or takes too long says so in the results; the others are measured all the same.
Results are written as soon as a part is done.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from gpu_subjects import REAL, TINY, Size, free
from step import hardware_name

from fewstep.utils.hardware import describe

Results = dict[str, Any]
Parts = Mapping[str, tuple[Callable[[Size], Results], int]]
"""What is measured by name, and after how many seconds it is given up."""


def main(
    script: str,
    description: str,
    parts: Parts,
    *,
    prefix: str,
    summary: Callable[[Results], Results] = lambda results: {},
) -> None:
    """Command line of a measurement.

    Args:
        script: File that is run once more for each part.
        description: For ``--help``.
        parts: What can be measured.
        prefix: Results are written to ``<prefix>-<hardware>.json``.
        summary: Further entries of the results, from those of all parts.
    """
    parser = argparse.ArgumentParser(description=description.split("\n", 1)[0])
    parser.add_argument("--parts", default=",".join(parts), help=f"of {', '.join(parts)}")
    parser.add_argument("--tiny", action="store_true", help="toys on a processor; no file")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--together", action="store_true", help="all parts in one process, which starts once"
    )
    results = Path(__file__).resolve().parent / "results"
    parser.add_argument("--out", type=Path, default=results, help="folder of the results' file")
    parser.add_argument("--child", choices=[*parts, "hardware"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        size = TINY if arguments.tiny else REAL
        print(json.dumps(_part(parts, arguments.child, size)))
        return
    names = arguments.parts.split(",")
    if unknown := [name for name in names if name not in parts]:
        parser.error(f"--parts: there is no {unknown[0]!r}, only {', '.join(parts)}")
    if not arguments.tiny and not torch.cuda.is_available():
        parser.error("there is no GPU; --tiny runs the same at toy size")
    # In a process of its own, as asking for a GPU's name takes memory of the device.
    size = TINY if arguments.tiny else REAL

    def measured(name: str, limit: float) -> Results:
        if arguments.together:
            free(size)
            return _part(parts, name, size)
        return _measure(script, name, limit=limit, tiny=arguments.tiny)

    content: Results = {"hardware": measured("hardware", 60), "tiny": arguments.tiny, "parts": {}}
    for name in names:
        content["parts"][name] = measured(name, parts[name][1])
        print(f"{name}: {json.dumps(content['parts'][name])}", file=sys.stderr, flush=True)
        content |= summary(content["parts"])
        if not arguments.tiny:
            content = _save(content, arguments.out, prefix, summary)
    print(json.dumps(content, indent=None if arguments.json else 2))


def _part(parts: Parts, name: str, size: Size) -> Results:
    """One part in this process; an error is a result as well."""
    if name == "hardware":
        return dict(describe())
    start = time.perf_counter()
    try:
        result = parts[name][0](size)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        result = {"error": f"{type(error).__name__}: {reason}"}
    return {**result, "seconds": round(time.perf_counter() - start, 1)}


def _measure(script: str, name: str, *, limit: float, tiny: bool) -> Results:
    """One part in a process of its own: the last line of JSON that it printed."""
    command = [sys.executable, script, "--child", name, *(["--tiny"] if tiny else [])]
    with tempfile.TemporaryDirectory() as folder:
        # Files, since whatever a process that was ended has started may hold on to a pipe.
        code: int | None = None
        out, err = Path(folder) / "out", Path(folder) / "err"
        with out.open("w") as stdout, err.open("w") as stderr:
            child = subprocess.Popen(command, stdout=stdout, stderr=stderr, start_new_session=True)
            try:
                code = child.wait(limit * (4 if tiny else 1))
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)  # with all that it has started
                child.wait()
        lines = [line for line in out.read_text().splitlines() if line.startswith("{")]
        errors = err.read_text(errors="replace").strip().splitlines() or ["no message"]
    result: Results = json.loads(lines[-1]) if lines else {}
    if code is None:
        return {**result, "error": "not done in time"}
    if code or not result:
        return {**result, "error": f"ended with {code}: {errors[-1]}"}
    return result


def _save(
    content: Results, folder: Path, prefix: str, summary: Callable[[Results], Results]
) -> Results:
    """Write results, beside those of other parts on the same hardware and versions."""
    file = folder / f"{prefix}-{hardware_name(content['hardware'])}.json"
    old = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if old.get("hardware") == content["hardware"]:
        parts = {**old["parts"], **content["parts"]}
        content = {**content, "parts": parts, **summary(parts)}
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return content
