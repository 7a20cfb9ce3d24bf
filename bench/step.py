"""What a student update costs: the fused step against the plain one, in one interleaved run.

    python bench/step.py --json                 the embedded pipeline
    python bench/step.py --backbone flux        a tiny random pipeline of tests/tiny
    python bench/step.py --save                 also writes bench/results/step-<hardware>.json

Both sides train a student of their own with the published settings: N ~ U{1..28}, CA, DM and CDM,
the student moves on every 2nd iteration. The two grids of a student update have n and 29 - n steps,
and n and the anchors are spread evenly: a short run costs what a long one does. Network work is
counted from the calls as they happen: an evaluation of a sample is 1, its way back 2.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep import models, objectives
from fewstep.config import EmaRecipe, FakeTeacherOptimizerRecipe, FakeTeacherRecipe, StudentRecipe
from fewstep.core.noise import Draws
from fewstep.core.schedules import RandomGrid
from fewstep.core.types import Conditioning
from fewstep.models import Backbone
from fewstep.train.optim import Ema, LRSchedule, Updater
from fewstep.train.roles import FAKE_TEACHER, STUDENT, Roles
from fewstep.train.step import Algorithm, Batch, TrainState, iteration
from fewstep.utils.hardware import describe, peak_memory_gb, pick_device
from fewstep.utils.resources import resolve

EMBEDDED = "package://fewstep.toyworld/data/pipeline"
MOST, EVERY = 28, 2
PROMPTS = ("a red circle", "a blue square", "two green triangles", "a small ring")
KINDS = ("plain", "fused")
CRITERIA = {"work_ratio": 0.66, "time_ratio": 0.72}


class Spread(Draws):
    """Draws whose anchors are spread over the grid: each still uniform, their mean less noisy."""

    def integers(self, name: str, indices: Any, high: int) -> Tensor:
        """As any draws, but for the anchors."""
        if name != "anchor":
            return super().integers(name, indices, high)
        offset = Draws(self.seed, self.step).uniform("offset", [0])
        return ((torch.arange(len(indices)) + offset) * high / len(indices)).long()


class Counted:
    """A backbone whose network calls are counted: samples on their way there and back."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self.forward = self.backward = 0

    def velocity(self, net: nn.Module, xt: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """As the backbone's own."""
        velocity = self._backbone.velocity(net, xt, sigma, cond)
        self.forward += len(xt)
        if velocity.requires_grad:
            velocity.register_hook(lambda _: self._went_back(len(xt)))
        return velocity

    def _went_back(self, samples: int) -> None:
        self.backward += samples


@dataclass(eq=False)
class Side:
    """One of the two: what it trains, and what that has cost so far."""

    train_state: TrainState
    algorithm: Algorithm
    batch: Batch
    counted: Counted
    device: torch.device
    process: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    peak: float = 0.0

    def update(self, number: int, grids: tuple[int, ...]) -> None:
        """One student update: as many iterations as there are grids, of so many steps."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        began = self._now()
        for i, steps in enumerate(grids):
            algorithm = replace(self.algorithm, grid=RandomGrid(min_steps=steps, max_steps=steps))
            draws = Spread(0, number * EVERY + i, self.device)
            iteration(self.train_state, [self.batch], draws, algorithm)
        ended = self._now()
        self.process.append(ended[0] - began[0])
        self.wall.append(ended[1] - began[1])
        if self.device.type == "cuda":
            self.peak = max(self.peak, torch.cuda.max_memory_allocated() / 1e9)

    def _now(self) -> tuple[float, float]:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.process_time(), time.perf_counter()

    @property
    def work(self) -> float:
        """Network work of a student update, per sample."""
        done = self.counted.forward + 2 * self.counted.backward
        return done / len(self.batch.indices) / len(self.wall)


def load(name: str | None, folder: Path) -> tuple[Backbone, tuple[int, int], list[str]]:
    """A backbone, the size of its pictures, and prompts."""
    if name is None:
        prompts = (
            resolve("package://fewstep.toyworld/data/prompts/train.txt").read_text().split("\n")
        )
        return models.load(EMBEDDED, max_sequence_length=14), (64, 64), prompts[:64]
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from tiny import discover

    tiny = discover()[name]
    if not (folder / "model_index.json").exists():
        tiny.build(folder)
    return models.load(folder, **tiny.options), tiny.size, list(PROMPTS)


def make_side(kind: str, args: argparse.Namespace, folder: Path) -> Side:
    """A side at the start of its training."""
    backbone, size, prompts = load(args.backbone, folder)
    device = pick_device(args.device)
    backbone.to(device)
    texts = [prompts[i % len(prompts)] for i in range(args.batch)]
    batch = Batch(backbone.encode(texts), backbone.null(args.batch), torch.arange(args.batch))
    lora = {"lora": {"rank": 16}} if args.mode == "lora" else {}
    recipe = StudentRecipe.model_validate({"mode": args.mode, **lora})
    fake = FakeTeacherRecipe()
    roles = Roles.build(backbone, recipe, seed=0)
    counted = Counted(backbone)
    roles.backbone = counted
    settings = {STUDENT: recipe.optimizer, FAKE_TEACHER: FakeTeacherOptimizerRecipe()}
    optimizers = {
        role: Updater(role, roles.parameters(role), settings[role], lr_schedule=LRSchedule(100))
        for role in settings
    }
    ca = "ca_embedded" if "guidance" in batch.null.tensors else "ca"
    algorithm = Algorithm(
        objectives=[objectives.build(name) for name in (ca, "dm", "cdm")],
        grid=RandomGrid(max_steps=MOST),
        shift=backbone.shift(*size),
        latent_shape=backbone.latent_shape(*size),
        every=EVERY,
        law=fake.law,
        target=fake.target,
        fake_updates=fake.updates,
        ida_rate=fake.ida_rate,
        fused=kind == "fused",
    )
    ema = Ema(roles.parameters(STUDENT), EmaRecipe().max_decay)
    return Side(TrainState(roles, optimizers, ema), algorithm, batch, counted, device)


def grids_of(number: int, updates: int) -> tuple[int, int]:
    """Numbers of steps of an update's two grids: evenly over 1..28, their sum always 29."""
    steps = 1 + (2 * number + 1) * MOST // (2 * updates)
    return steps, MOST + 1 - steps


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Both sides, one student update of each after the other, taking turns at going first."""
    sides = {kind: make_side(kind, args, folder) for kind in KINDS}
    for side in sides.values():  # compiling and warming up are not counted
        side.update(args.updates, (2, 1))
        side.process.clear()
        side.wall.clear()
        side.counted.forward = side.counted.backward = 0
    for number in range(args.updates):
        for kind in KINDS if number % 2 else KINDS[::-1]:
            sides[kind].update(number, grids_of(number, args.updates))

    def ratio(cost: Callable[[Side], float]) -> float:
        return round(cost(sides["fused"]) / cost(sides["plain"]), 4)

    results: dict[str, Any] = {
        "work_ratio": ratio(lambda side: side.work),
        "process_time_ratio": ratio(lambda side: sum(side.process)),
        "wall_time_ratio": ratio(lambda side: sum(side.wall)),
    }
    on_host = sides["plain"].device.type == "cpu"
    results["time_ratio"] = results["process_time_ratio" if on_host else "wall_time_ratio"]
    for kind, side in sides.items():
        results[kind] = {
            "work": round(side.work, 3),
            "process_seconds": round(sum(side.process) / args.updates, 4),
            "wall_seconds": round(sum(side.wall) / args.updates, 4),
            "peak_memory_gb": round(side.peak, 3) or None,
        }
    return results


def peak_of(kind: str, args: argparse.Namespace, folder: Path) -> float:
    """Largest resident memory of a process that does one student update of one kind."""
    torch.set_num_threads(args.threads)
    make_side(kind, args, folder).update(0, (2, 1))
    return peak_memory_gb()


def bench(args: argparse.Namespace) -> dict[str, Any]:
    """The whole measurement."""
    torch.set_flush_denormal(True)
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        results = measure(args, folder)
        if pick_device(args.device).type == "cpu" and not args.quick:
            with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
                for kind in KINDS:
                    peak = pool.submit(peak_of, kind, args, folder).result()
                    results[kind]["peak_memory_gb"] = round(peak, 3)
    return {
        **results,
        "criteria": CRITERIA,
        "criteria_met": all(results[key] <= limit for key, limit in CRITERIA.items()),
        "pipeline": args.backbone or EMBEDDED,
        "mode": args.mode,
        "batch": args.batch,
        "student_updates": args.updates,
        "hardware": describe(),
    }


def hardware_name(hardware: dict[str, Any]) -> str:
    """What a file of results is called after."""
    name = hardware.get("accelerator") or hardware["cpu"]
    return re.sub(r"[^a-z0-9]+", "-", name.casefold()).strip("-")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--backbone", help="a pipeline of tests/tiny; default: the embedded one")
    parser.add_argument("--mode", choices=("full", "lora"), default="full")
    parser.add_argument("--updates", type=int, default=MOST // 4, help="student updates")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1, help="waiting threads cost time, too")
    parser.add_argument("--quick", action="store_true", help="no memory: it takes two processes")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--save", action="store_true", help="write bench/results/step-*.json too")
    args = parser.parse_args()
    results = bench(args)
    text = json.dumps(results, indent=None if args.json else 2)
    if args.save:
        file = f"step-{hardware_name(results['hardware'])}.json"
        target = Path(__file__).resolve().parent / "results" / file
        target.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
