"""A long run needs no more than a short one: memory, files, threads and time of a step stay flat.

The real loop, with checkpoints beside the training, previews, measurements and the log, is watched
from outside while it runs. The bounds hold from the first tenth to the end. Time is CPU time, which
other programs on the machine hardly move.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from faults import processes, runs
from fewstep.train.monitor.sinks.metrics_file import METRICS

CHEAP = (
    "data.batch_size=1",
    "grid={name: random, max_steps: 1}",
    "objectives=[{name: dm}]",
    "checkpoint={every: 250, keep_last: 2, asynchronous: true}",
    "preview.every=500",
    "health.every=500",
    "student={mode: full, every: 5}",
)
GROWTH_MB = 16  # of memory, between the first tenth and the last
SLOWER = 1.15  # CPU time of a step in the last quarter, over the one in the second


@dataclass
class Sample:
    """What the process needs at a moment."""

    step: int
    memory_mb: float
    files: int
    threads: int
    cpu_seconds: float


def last_step(metrics: Path) -> int:
    """Step of the last whole line, from the end of the file: watching must be cheap."""
    if not metrics.exists():
        return 0
    with metrics.open("rb") as stream:
        stream.seek(max(0, metrics.stat().st_size - 4096))
        lines = stream.read().split(b"\n")[1:-1]
    return json.loads(lines[-1])["step"] if lines else 0


def watch(command: processes.Command, metrics: Path) -> list[Sample]:
    """Looks at a process every half second until it ends."""
    process, found = psutil.Process(command.process.pid), []
    while command.process.is_alive():
        try:
            with process.oneshot():
                found.append(
                    Sample(
                        last_step(metrics),
                        process.memory_info().rss / 2**20,
                        process.num_fds(),
                        process.num_threads(),
                        sum(process.cpu_times()[:2]),
                    )
                )
        except psutil.Error:
            break
        command.process.join(0.5)
    return found


def cpu_a_step(samples: list[Sample]) -> float:
    """Mean CPU seconds of a step between the first sample and the last."""
    first, last = samples[0], samples[-1]
    return (last.cpu_seconds - first.cpu_seconds) / max(1, last.step - first.step)


@pytest.mark.parametrize("steps", [500, pytest.param(20_000, marks=pytest.mark.slow)])
def test_nothing_grows(steps, recipe, tmp_path, count, tell):
    words = runs.distill(recipe, tmp_path / "run", *CHEAP, f"train.steps={steps}")
    command = processes.start(words, tmp_path / "log")
    samples = watch(command, tmp_path / "run" / METRICS)
    assert command.wait() == 0, command.said()
    settled = [each for each in samples if each.step >= steps / 10]
    begin, end = settled[: max(1, len(settled) // 10)], settled[-max(1, len(settled) // 10) :]
    memory = [statistics.median(each.memory_mb for each in part) for part in (begin, end)]
    quarters = [[s for s in settled if s.step * 4 // (steps + 1) == n] for n in (1, 3)]
    times = [cpu_a_step(part) for part in quarters]
    found = (
        f"{steps} steps: memory {memory[0]:.0f} to {memory[1]:.0f} MB, CPU time of a step "
        f"{times[0] * 1e3:.2f} to {times[1] * 1e3:.2f} ms, at most "
        f"{max(each.files for each in settled)} files and "
        f"{max(each.threads for each in settled)} threads, first "
        f"{max(each.files for each in begin)} and {max(each.threads for each in begin)}"
    )
    tell(found)
    count("iterations soaked", steps)
    assert runs.recorded(tmp_path / "run") == list(range(steps + 1))
    assert memory[1] - memory[0] < GROWTH_MB, found
    assert max(each.threads for each in settled) <= max(each.threads for each in begin) + 1, found
    assert max(each.files for each in end) <= max(each.files for each in begin) + 2, found
    assert times[1] < SLOWER * times[0] or steps < 1000, found
