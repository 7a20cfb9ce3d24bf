"""Seconds an iteration takes with 1, 2 and 4 processes, at one global batch.

    python bench/scaling.py --processes 1 2 4 --shard none --repeats 3 --json
    python bench/scaling.py --tiny        # only whether it works; nothing is written

Each measurement is a run of its own under torchrun on the random tiny Stable Diffusion 3. The
numbers of processes take turns, so that what else the machine does falls on all alike. Reported are
the wall time of an iteration and the processor time of all processes: on a machine with fewer free
cores than processes only the latter says anything, namely what the sharing itself costs.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import paths  # noqa: F401
from step import hardware_name

from fewstep.utils.hardware import describe

RESULTS = Path(__file__).resolve().parent / "results"
WARM = 1  # iterations that are not counted
TINY = {"processes": [1, 2], "batch": 2, "steps": 3, "repeats": 1}


def main() -> None:
    """Measure, write the results and print them."""
    if sys.argv[1:2] == ["--worker"]:
        work(Path(sys.argv[2]), Path(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--shard", choices=["none", "full"], default="none")
    parser.add_argument("--batch", type=int, default=8, help="global batch")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--note", default="", help="what else the machine was doing")
    parser.add_argument(
        "--tiny", action="store_true", help="the least that runs; nothing is written"
    )
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.tiny:
        parser.set_defaults(**TINY)
        arguments = parser.parse_args()
    if arguments.steps < WARM + 2:
        parser.error(f"--steps: at least {WARM + 2}, as the first and the last are not counted")
    report = measure_all(arguments)
    if not arguments.tiny:
        save(report)
    if arguments.json:
        print(json.dumps(report, indent=2))
        return
    for count, times in report["processes"].items():
        print(f"{count} processes: {times['wall_s']:.3f} s wall, {times['cpu_s']:.3f} s processor")


def measure_all(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was measured, and where."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        recipe = prepare(folder, arguments)
        runs: dict[int, list[dict[str, float]]] = {count: [] for count in arguments.processes}
        for repeat in range(arguments.repeats):
            for count in arguments.processes:
                runs[count].append(measure(count, recipe, folder / f"{repeat}-{count}"))
    return {
        "global_batch": arguments.batch,
        "steps": arguments.steps - WARM - 1,
        "repeats": arguments.repeats,
        "shard": arguments.shard,
        "load": list(os.getloadavg()),
        "note": arguments.note,
        "processes": {str(count): summary(repeats) for count, repeats in runs.items()},
        "hardware": describe(),
    }


def save(report: dict[str, Any]) -> None:
    """Write results under the hardware's name."""
    hardware = report["hardware"]
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"scaling-{hardware_name(hardware)}.json"
    file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def prepare(folder: Path, arguments: argparse.Namespace) -> Path:
    """A tiny model, prompts and a recipe that does nothing but iterate."""
    from fewstep.utils import yaml
    from toyworld_training.pipeline import build

    build(0).save_pretrained(folder / "model", safe_serialization=True)
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(f"picture number {i}" for i in range(16)) + "\n", encoding="utf-8")
    never = 10**6
    recipe = {
        "model": {"path": str(folder / "model"), "options": {"max_sequence_length": 16}},
        "data": {"prompts": str(prompts), "batch_size": arguments.batch},
        "resolution": {"height": 64, "width": 64},
        "grid": {"name": "random", "max_steps": 8},
        "objectives": [{"name": name} for name in ("ca", "dm", "cdm")],
        "train": {"steps": arguments.steps},
        "checkpoint": {"every": never},
        "preview": {"every": never, "count": 1, "teacher": {"steps": 1}},
        "health": {"every": never, "count": 1},
    }
    file = folder / "recipe.yaml"
    file.write_text(yaml.dump(recipe | {"parallel": {"shard": arguments.shard}}), encoding="utf-8")
    return file


def measure(processes: int, recipe: Path, out: Path) -> dict[str, float]:
    """Seconds an iteration of one run: wall time, and processor time of all processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)),
        *("--master-addr", "127.0.0.1", "--master-port", str(port)),
        *(__file__, "--worker", str(recipe), str(out)),
    ]
    settings = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=settings, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def work(recipe_file: Path, out: Path) -> None:
    """What each process does: iterate; the first one prints how long it took."""
    from rich.console import Console

    from fewstep.config import Recipe
    from fewstep.train.trainer import Trainer

    recipe = Recipe.from_file(recipe_file)
    walls, cpus = [], []
    with Trainer(recipe, out, console=Console(quiet=True)) as trainer:
        for _ in range(recipe.train.steps):
            wall, cpu = time.perf_counter(), time.process_time()
            trainer.step()
            walls.append(time.perf_counter() - wall)
            cpus.append(time.process_time() - cpu)
        processes = trainer.state.processes
        each = processes.gather(cpus) if processes.size > 1 else [cpus]
    if processes.first:
        cpus = [sum(row) for row in zip(*each, strict=True)]
        middle = {"wall_s": walls[WARM:-1], "cpu_s": cpus[WARM:-1]}  # the last one also saves
        print(json.dumps({name: statistics.mean(row) for name, row in middle.items()}))


def summary(runs: list[dict[str, float]]) -> dict[str, Any]:
    """Medians over the repeats, and what each gave."""
    medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    return medians | {"runs": runs}


if __name__ == "__main__":
    main()
