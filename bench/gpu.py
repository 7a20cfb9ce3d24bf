"""All that needs a GPU, in one command of less than nine minutes; nothing is downloaded.

    python bench/gpu.py                          all parts
    python bench/gpu.py --parts full,lora        some; earlier results of the others are kept
    python bench/gpu.py --tiny --json            at toy size, also on a processor; writes no file

Networks have the published sizes and random weights, prompts are random tensors, and text encoders
and VAE are not there. Everything else is what `fewstep distill` builds from the shipped recipes.
Each part has a process of its own, which is ended when its time is over. Results are written to
bench/results/gpu-<hardware>.json, or to the folder given by --out.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from gpu_subjects import FLUX, LATE, SD3, SIDES, UNCOMPILED, Size, Subject, build, now
from isolated import Parts, main
from kernels import profiled
from step import EVERY, Counted, Side, grids_of
from torch import Tensor

from fewstep.core.noise import Draws
from fewstep.core.schedules import RandomGrid
from fewstep.train.determinism import deterministic
from fewstep.train.roles import STUDENT
from fewstep.train.step import iteration
from fewstep.utils.hardware import peak_memory_gb

# ---------------------------------------------------------------------------------------- parts


@deterministic(True)  # as recipes have it by default
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
    results: dict[str, Any] = {"recipe": "sd3-medium", "settings": settings, "batch": batch}
    results["forward_tflop"] = subject.tflop
    turns = Turns(subject, size, time.perf_counter() + size.seconds)
    for kinds, updates in ((UNCOMPILED, min(2, size.updates)), (list(SIDES), size.updates)):
        results |= turns.take(kinds, updates)
        print(json.dumps(results), flush=True)
    return {**results, "profile": turns.profile("compiled")}


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
        start = time.perf_counter()
        sides = {kind: self._side(kind) for kind in kinds}
        for kind, side in sides.items():  # compiling and warming up are not counted
            # Compiled blocks want a variant for some of the batches they will see.
            for number in range(updates if SIDES[kind][1] else 1):
                self._turn(kind, side, grids_of(number, updates), number)
            side.process.clear()
            side.wall.clear()
            side.counted.forward = side.counted.backward = 0
        ready = time.perf_counter() - start
        for number in range(updates):
            for kind in kinds if number % 2 else reversed(kinds):
                self._turn(kind, sides[kind], grids_of(number, updates), number)
            if time.perf_counter() > self.until:
                break
        plain = sum(sides["plain"].wall)
        figures = {kind: self._figures(side, plain) for kind, side in sides.items()}
        return {"student_updates": number + 1, "seconds_before": round(ready, 1), **figures}

    def profile(self, kind: str) -> dict[str, Any]:
        """Where the device's time goes in one more student update of a side."""
        side = self._side(kind)
        return profiled(lambda: self._turn(kind, side, grids_of(0, 1), 0))

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
    by_side = {}
    for side in size.squares:
        a, b = (torch.randn(side, side, device=size.device, dtype=torch.bfloat16) for _ in "ab")
        times = max(4, round(2e14 / (2 * side**3))) if not size.tiny else 2

        def run(times: int, a: Tensor = a, b: Tensor = b) -> float:
            start = now(size.device)
            for _ in range(times):
                torch.matmul(a, b)
            return now(size.device) - start

        run(times)
        by_side[str(side)] = 2 * side**3 * times / min(run(times) for _ in range(3)) / 1e12
    return {"tflops": max(by_side.values()), "by_side": by_side}


@deterministic(True)
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
        start = now(size.device)
        iteration(subject.train_state, [subject.batch], Draws(0, step, size.device), algorithm)
        seconds.append(round(now(size.device) - start, 3))
    peak = torch.cuda.max_memory_allocated() / 1e9 if cuda else peak_memory_gb()
    trained = subject.train_state.roles.parameters(STUDENT).values()
    return {
        "recipe": name,
        "settings": ["data.batch_size=1", *overrides],
        "trained_parameters": sum(each.numel() for each in trained),
        "peak_gb": round(peak, 3),
        "reserved_gb": round(torch.cuda.max_memory_reserved() / 1e9, 3) if cuda else None,
        "planned_gb": subject.planned / 1e9,
        "criterion_gb": criterion,
        "criterion_met": peak < criterion if cuda else None,
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
    return memory(FLUX, "flux.1-dev-lora", ["memory.base=nf4"], 16, size)


def flux_bf16(size: Size) -> dict[str, Any]:
    """The same on the base as it comes."""
    return memory(FLUX, "flux.1-dev-lora", ["memory.base=null"], 40, size)


PARTS: Parts = {
    "speed": (speed, 240),
    "matmul": (matmul, 35),
    "full": (full, 65),
    "lora": (lora, 50),
    "flux": (flux, 75),
    "flux_bf16": (flux_bf16, 60),
}
"""525 seconds in all."""


def share_of_peak(parts: dict[str, Any]) -> dict[str, Any]:
    """Which share of the measured peak of matrix products each side of `speed` reaches."""
    peak = parts.get("matmul", {}).get("tflops")
    sides = parts.get("speed", {})
    if not peak or "plain" not in sides:
        return {"share_of_peak": None}
    shares = {kind: round(sides[kind]["tflops"] / peak, 4) for kind in SIDES if kind in sides}
    return {"share_of_peak": shares}


if __name__ == "__main__":
    main(__file__, __doc__, PARTS, prefix="gpu", summary=share_of_peak)
