"""All that needs a GPU, in one command of less than nine minutes; nothing is downloaded.

    python bench/gpu.py                          all parts
    python bench/gpu.py --parts full,lora        some; the others' last results stay in the file
    python bench/gpu.py --tiny --json            at toy size, also on a processor; writes no file

Networks have the published sizes and random weights, prompts are random tensors, and text encoders
and VAE are not there. Everything else is what `fewstep distill` builds from the shipped recipes.
Each part has a process of its own, which is ended when its time is over, and a part that fails says
why in the results: bench/results/gpu-<hardware>.json.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from gpu_subjects import FLUX, LATE, REAL, SD3, SIDES, TINY, UNCOMPILED, Size, Subject, build
from step import EVERY, Counted, Side, grids_of, hardware_name
from torch import Tensor

from fewstep.config.memory import MemoryRecipe
from fewstep.core.noise import Draws
from fewstep.core.schedules import RandomGrid
from fewstep.train.determinism import deterministic
from fewstep.train.roles import STUDENT
from fewstep.train.step import iteration
from fewstep.utils.hardware import describe, peak_memory_gb

# ---------------------------------------------------------------------------------------- parts


def speed(size: Size) -> dict[str, Any]:
    """Student updates of three sides in turns: plain, fused, and fused with compiled blocks.

    They share networks and optimizers, since two copies fit nowhere: only what is done differs.
    There is no running mean, which makes room for larger batches; it would cost all sides the same.
    """
    for batch in size.batches:
        try:
            return compare(batch, size)
        except torch.OutOfMemoryError:
            message = f"no memory for a batch of {batch}"
        print(message, file=sys.stderr)
        gc.collect()  # networks and their modules know each other
        torch.cuda.empty_cache()
    raise torch.OutOfMemoryError(message)


def compare(batch: int, size: Size) -> dict[str, Any]:
    """The comparison at one batch size: first without compiled blocks, should these take long."""
    settings = [f"data.batch_size={batch}", "ema=null", "student.compile=true"]
    subject = build(SD3, "sd3-medium", settings, size)
    found: dict[str, Any] = {"recipe": "sd3-medium", "settings": settings, "batch": batch}
    found["forward_tflop"] = subject.tflop
    turns = Turns(subject, size, time.perf_counter() + size.seconds)
    for kinds, updates in ((UNCOMPILED, min(2, size.updates)), (list(SIDES), size.updates)):
        found |= turns.take(kinds, updates)
        print(json.dumps(found), flush=True)
    return found


@dataclass(eq=False)
class Turns:
    """Sides that update the same networks, one after the other.

    Attributes:
        subject: What they update.
        size: How large it is.
        until: When the last turn starts at the latest.
    """

    subject: Subject
    size: Size
    until: float

    def take(self, kinds: list[str], updates: int) -> dict[str, Any]:
        """What each side's student updates took."""
        began = time.perf_counter()
        sides = {kind: self._side(kind) for kind in kinds}
        for kind, side in sides.items():  # what happens only once is nobody's cost
            # Compiled blocks want a variant for some of the batches they will see.
            for number in range(updates if SIDES[kind][1] else 1):
                self._turn(kind, side, grids_of(number, updates), number)
            side.process.clear()
            side.wall.clear()
            side.counted.forward = side.counted.backward = 0
        ready = time.perf_counter() - began
        for number in range(updates):
            for kind in kinds if number % 2 else reversed(kinds):
                self._turn(kind, sides[kind], grids_of(number, updates), number)
            if time.perf_counter() > self.until:
                break
        plain = sum(sides["plain"].wall)
        found = {kind: self._figures(side, plain) for kind, side in sides.items()}
        return {"student_updates": number + 1, "seconds_before": round(ready, 1), **found}

    def _side(self, kind: str) -> Side:
        subject = self.subject
        algorithm = replace(subject.algorithm, fused=SIDES[kind][0] == "fused")
        counted = Counted(subject.backbone)
        return Side(subject.train_state, algorithm, subject.batch, counted, self.size.device)

    def _turn(self, kind: str, side: Side, grids: tuple[int, int], number: int) -> None:
        compiled = SIDES[kind][1] and not self.size.tiny
        self.subject.train_state.roles.backbone = side.counted
        with torch.compiler.set_stance("default" if compiled else "force_eager"):
            side.update(number, grids)

    def _figures(self, side: Side, plain: float) -> dict[str, float]:
        seconds, updates, counted = sum(side.wall), len(side.wall), side.counted
        again = bool(self.subject.recipe.student.gradient_checkpointing)
        passes = counted.forward + counted.backward * (2 + again)
        return {
            "seconds_per_update": round(seconds / updates, 4),
            "samples_per_second": round(updates * len(side.batch.indices) / seconds, 4),
            "throughput_ratio": round(plain / seconds, 4),
            "work": round(side.work, 3),
            "tflops": self.subject.tflop * passes / seconds,
            "peak_memory_gb": round(side.peak, 3),
        }


def matmul(size: Size) -> dict[str, Any]:
    """The peak of matrix products in bfloat16, as measured here."""
    found = {}
    for side in size.squares:
        a, b = (torch.randn(side, side, device=size.device, dtype=torch.bfloat16) for _ in "ab")
        times = max(4, round(2e14 / (2 * side**3))) if not size.tiny else 2

        def run(times: int, a: Tensor = a, b: Tensor = b) -> float:
            began = now(size.device)
            for _ in range(times):
                torch.matmul(a, b)
            return now(size.device) - began

        run(times)
        found[str(side)] = 2 * side**3 * times / min(run(times) for _ in range(3)) / 1e12
    return {"tflops": max(found.values()), "by_side": found}


def now(device: torch.device) -> float:
    """Seconds, after all that was asked for is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def memory(
    model: str, name: str, overrides: list[str], criterion: float, size: Size
) -> dict[str, Any]:
    """Most memory in two student updates at batch 1, and the bound on it in 1e9 bytes."""
    subject = build(model, name, ["data.batch_size=1", *overrides], size)
    cuda, seconds = size.device.type == "cuda", []
    if cuda:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    algorithm = replace(subject.algorithm, grid=RandomGrid(min_steps=2, max_steps=2))
    for step in range(LATE, LATE + 2 * EVERY):  # the second student update has all its moments
        began = now(size.device)
        iteration(subject.train_state, [subject.batch], Draws(0, step, size.device), algorithm)
        seconds.append(round(now(size.device) - began, 3))
    peak = torch.cuda.max_memory_allocated() / 1e9 if cuda else peak_memory_gb()
    trained = subject.train_state.roles.parameters(STUDENT).values()
    return {
        "recipe": name,
        "settings": ["data.batch_size=1", *overrides],
        "trained_parameters": sum(each.numel() for each in trained),
        "peak_gb": round(peak, 3),
        "reserved_gb": round(torch.cuda.max_memory_reserved() / 1e9, 3) if cuda else None,
        "planned_gb": subject.planned / 1e9,
        "bar_gb": criterion,
        "bar_met": peak < criterion if cuda else None,
        "iteration_seconds": seconds,
    }


def full(size: Size) -> dict[str, Any]:
    """Full fine-tuning: three networks, two with gradients and moments, and the mean."""
    return memory(SD3, "sd3-medium", [], 76, size)


def lora(size: Size) -> dict[str, Any]:
    """One network and two adapters."""
    return memory(SD3, "sd3-medium-lora", [], 12, size)


def flux(size: Size) -> dict[str, Any]:
    """The same of a model six times as large, on the smallest base that recipes know."""
    return memory(FLUX, "flux.1-dev-lora", [f"memory.base={smallest_base()}"], 16, size)


def smallest_base() -> str:
    """A format of the frozen base; 4 bits where there are such."""
    known = [
        name for kind in get_args(MemoryRecipe.model_fields["base"].annotation)
        for name in get_args(kind)
    ]  # fmt: skip
    return next(name for name in ("nf4", "int4", "int8", *known) if name in known)


PARTS: dict[str, tuple[Callable[[Size], dict[str, Any]], int]] = {
    "speed": (speed, 290),
    "matmul": (matmul, 35),
    "full": (full, 65),
    "lora": (lora, 50),
    "flux": (flux, 75),
}
"""What is measured, and after how many seconds it is given up: 515 in all."""


# ------------------------------------------------------------------------------- one at a time


def child(part: str, size: Size) -> dict[str, Any]:
    """One part, in this process; an error is a result as well."""
    began = time.perf_counter()
    try:
        with deterministic(True):  # as recipes have it unless told
            found = PARTS[part][0](size)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        found = {"error": f"{type(error).__name__}: {reason}"}
    return {**found, "seconds": round(time.perf_counter() - began, 1)}


def measure(part: str, *, tiny: bool) -> dict[str, Any]:
    """One part, in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--child", part]
    if tiny:
        command.append("--tiny")
    limit = PARTS[part][1]
    with tempfile.TemporaryDirectory() as folder:
        # Files, since whatever a process that was ended has started may hold on to a pipe.
        out, err = Path(folder) / "out", Path(folder) / "err"
        with out.open("w") as stdout, err.open("w") as stderr:
            try:
                code = subprocess.run(
                    command, stdout=stdout, stderr=stderr, timeout=limit
                ).returncode
            except subprocess.TimeoutExpired:
                code = None
        lines = [line for line in out.read_text().splitlines() if line.startswith("{")]
        told = (err.read_text(errors="replace").strip().splitlines() or ["nothing said"])[-1]
    found = json.loads(lines[-1]) if lines else {}
    if code is None:
        return {**found, "error": f"not done after {limit} seconds"}
    return {**found, "error": f"ended with {code}: {told}"} if code or not found else found


def share(parts: dict[str, Any]) -> dict[str, float] | None:
    """Which part of the measured matrix peak each side of the comparison reaches."""
    peak = parts.get("matmul", {}).get("tflops")
    sides = parts.get("speed", {})
    if not peak or "plain" not in sides:
        return None
    return {kind: round(sides[kind]["tflops"] / peak, 4) for kind in SIDES if kind in sides}


def bench(names: list[str], *, tiny: bool) -> dict[str, Any]:
    """All the parts asked for, and what was measured on."""
    parts = {name: measure(name, tiny=tiny) for name in names}
    # Only now: to ask for its name takes memory of the device.
    return {"hardware": describe(), "tiny": tiny, "parts": parts, "share_of_peak": share(parts)}


def save(found: dict[str, Any], folder: Path) -> None:
    """Write results, beside those of other parts on the same hardware and versions."""
    file = folder / f"gpu-{hardware_name(found['hardware'])}.json"
    old = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if old.get("hardware") == found["hardware"]:
        parts = {**old["parts"], **found["parts"]}
        found = {**found, "parts": parts, "share_of_peak": share(parts)}
    folder.mkdir(exist_ok=True)
    file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--tiny", action="store_true", help="toys on a processor; no file")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--child", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(args.child, TINY if args.tiny else REAL)))
        return
    names = args.parts.split(",")
    if odd := [name for name in names if name not in PARTS]:
        parser.error(f"--parts: there is no {odd[0]!r}, only {', '.join(PARTS)}")
    if not args.tiny and not torch.cuda.is_available():
        parser.error("there is no GPU; --tiny runs the same at toy size")
    found = bench(names, tiny=args.tiny)
    if not args.tiny:
        save(found, Path(__file__).resolve().parent / "results")
    print(json.dumps(found, indent=None if args.json else 2))


if __name__ == "__main__":
    main()
