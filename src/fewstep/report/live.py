"""A run as it is at this moment, training or not, read from its folder and never written to."""

from __future__ import annotations

import time
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from jinja2 import Environment

from fewstep.report import charts, pictures, tables
from fewstep.report.metrics import GrowingMetrics, Row, joined
from fewstep.report.words import words
from fewstep.train.monitor.divergence import Divergence
from fewstep.train.monitor.early_stop import since_best
from fewstep.utils import yaml
from fewstep.utils.errors import FewstepError
from fewstep.utils.files import read_json, read_text
from fewstep.utils.lock import HOLDER, at_work

_PACE = 20  # rows whose mean time tells how long the rest takes
_RECENT = 600.0  # seconds in which a run on another machine must have written to count as alive


class _Settings(NamedTuple):
    """Of the recipe, what tells how far the run is; steps are 0 where it is not written yet."""

    steps: int = 0
    preview_every: int = 1
    early_stop: int | None = None


class LiveRun:
    """What a page about a run shows; each look reads what is new."""

    def __init__(self, folder: Path) -> None:
        """Reads nothing yet.

        Raises:
            FewstepError: No run is there, nor one that is about to begin.
        """
        if not any((folder / name).is_file() for name in ("config.yaml", HOLDER)):
            raise FewstepError(
                f"{folder}: not a run folder (no config.yaml in it)", code="missing-file"
            )
        self.folder = folder
        self._metrics = GrowingMetrics(folder / "metrics.jsonl")
        self._began = 0
        self._divergence = Divergence()
        self._joined: list[Row] = []
        self._charts: list[charts.Chart] = []

    def look(self) -> dict[str, Any]:
        """The run now: what the templates of the page take.

        Returns:
            `state` (its kind and words), `progress` (0 to 1), `facts`, `words`, `charts`, and
            `steps` and `sheet` of the previews.
        """
        rows = self._rows()
        settings, checkpoints = self._settings(), self._checkpoints()
        steps, total = self.steps(), settings.steps
        step = int(rows[-1]["step"]) if rows else 0
        alive = self._alive()
        return {
            "title": self.folder.resolve().name,
            "state": self._state(alive, step, checkpoints, settings),
            "alive": alive,
            "progress": min(step / total, 1.0) if total else 0.0,
            "facts": _facts(rows, step, total, checkpoints) | self._left(alive, rows, step, total),
            "words": words(
                rows,
                self._divergence.verdict,
                brightness=self._brightness(steps),
                every=settings.preview_every,
            ),
            "charts": self._charts,
            "steps": steps,
            "sheet": self.sheet(),
        }

    def steps(self) -> list[int]:
        """Steps that have a preview."""
        names = (path.stem.removeprefix("step-") for path in self._previews().glob("step-*.png"))
        return sorted(int(name) for name in names if name.isdecimal())

    def sheet(self) -> dict[str, list[str]]:
        """What the columns and rows of a preview show; one of each where that is not known."""
        found = read_json(self._previews() / "previews.json") or {}
        columns, rows = found.get("columns"), found.get("rows")
        if not isinstance(columns, list) or not isinstance(rows, list) or not (columns and rows):
            return {"columns": ["previews"], "rows": [""]}
        return {"columns": [str(each) for each in columns], "rows": [str(each) for each in rows]}

    def picture(self, step: int, row: int, column: int) -> bytes | None:
        """One picture of a preview as PNG; None where there is none."""
        tiles = self._tiles(step)
        inside = row < len(tiles) and column < len(tiles[row])
        return pictures.as_png(tiles[row][column]) if inside else None

    def _tiles(self, step: int) -> list[list[Any]]:
        file, sheet = self._previews() / f"step-{step:08d}.png", self.sheet()
        try:
            changed = file.stat().st_mtime_ns
            return _tiles(file, changed, len(sheet["rows"]), len(sheet["columns"]))
        except OSError:  # gone, or damaged
            return []

    def _brightness(self, steps: list[int]) -> float | None:
        """The newest preview's: the student's less the teacher's, the median of all prompts."""
        pairs = [row for row in (self._tiles(steps[-1]) if steps else []) if len(row) > 1]
        if not pairs:
            return None
        return median(
            pictures.brightness(student) - pictures.brightness(teacher)
            for teacher, student, *_ in pairs
        )

    def _previews(self) -> Path:
        return self.folder / "previews"

    def _rows(self) -> list[Row]:
        """All rows; the judge of the run sees each once, and charts are drawn anew for new ones."""
        new = self._metrics.look()
        if self._metrics.beginnings != self._began:
            self._began, self._divergence = self._metrics.beginnings, Divergence()
        for row in new:
            figures = {name: value for name, value in row.items() if name != "step"}
            self._divergence.see(int(row["step"]), figures)
        if new:
            self._joined = joined(self._metrics.rows)
            self._charts = charts.charts(self._joined)
        return self._joined

    def _settings(self) -> _Settings:
        try:
            found = yaml.load(read_text(self.folder / "config.yaml"))
            train = found["train"]
            every = int(found["preview"]["every"])
            return _Settings(int(train["steps"]), every, train.get("early_stop"))
        except (FewstepError, yaml.YAMLError, KeyError, TypeError, ValueError):  # not there yet
            return _Settings()

    def _checkpoints(self) -> list[tuple[int, Path]]:
        found = (self.folder / "checkpoints").glob("step-*")
        named = ((path.name.removeprefix("step-"), path) for path in found)
        return sorted((int(name), path) for name, path in named if name.isdecimal())

    def _alive(self) -> bool:
        alive = at_work(self.folder)
        if alive is None:  # on another machine: by what it writes
            return _age(self.folder / "metrics.jsonl") < _RECENT
        return alive

    def _state(
        self, alive: bool, step: int, checkpoints: list[tuple[int, Path]], settings: _Settings
    ) -> tuple[str, str]:
        """`good`, `bad` or `busy`, and the words."""
        if alive:
            return "busy", "training" if self._metrics.rows else "starting: loading the model"
        if not checkpoints:
            return "bad", "ended before its first checkpoint"
        saved, path = checkpoints[-1]
        state = read_json(path / "state.json") or {}
        if state.get("past_saving"):
            return "bad", f"stopped at step {saved}: past saving"
        if saved >= settings.steps:
            return "good", "finished"
        early, every = settings.early_stop, settings.preview_every
        scores = {int(at): score for at, score in (state.get("scores") or {}).items()}
        if early and scores and saved % every == 0 and since_best(scores, saved, every)[1] >= early:
            return "good", f"ended by itself at step {saved} (train.early_stop)"
        killed = "killed" if (self.folder / HOLDER).is_file() else "stopped, or ended by an error,"
        return "bad", f"{killed} after step {step}; it can be resumed from step {saved}"

    def _left(
        self, alive: bool, rows: list[dict[str, Any]], step: int, total: int
    ) -> dict[str, str]:
        seconds = [row["seconds"] for row in rows[-_PACE:] if "seconds" in row]
        if not alive or not seconds:
            return {}
        return {"Time left": f"about {spell((total - step) * sum(seconds) / len(seconds))}"}


def page(environment: Environment, run: LiveRun) -> str:
    """The page of a run, which then asks for `parts`."""
    return environment.get_template("watch.html.j2").render(run.look())


def parts(environment: Environment, run: LiveRun) -> dict[str, Any]:
    """What changes on the page of a run: HTML by id, and the steps that have previews."""
    found = run.look()
    names = ("status", "words", "curves", "pictures")
    template = environment.get_template("watch_parts.html.j2")
    shown = {name: template.render(found | {"part": name}) for name in names}
    return {"parts": shown, "steps": found["steps"], "alive": found["alive"]}


def spell(seconds: float) -> str:
    """A time in its two largest units."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    units = [(days, "d"), (hours, "h"), (minutes, "min")]
    return " ".join([f"{count} {unit}" for count, unit in units if count][:2])


def _facts(
    rows: list[dict[str, Any]], step: int, total: int, checkpoints: list[tuple[int, Path]]
) -> dict[str, str]:
    last: dict[str, Any] = {}
    for row in rows[-_PACE:]:
        last |= row
    facts = {"Step": f"{step} of {total}" if total else str(step)}
    if "images_per_second" in last:
        facts["Pace"] = f"{tables.figure(last['images_per_second'])} images/s"
    if "memory_gb" in last:
        facts["Peak memory"] = f"{last['memory_gb']:.1f} GB"
    if checkpoints:
        saved, path = checkpoints[-1]
        facts["Last checkpoint"] = f"step {saved}, {spell(_age(path))} ago"
    return facts


def _age(path: Path) -> float:
    """Seconds since something was written; infinite where it is not there."""
    try:
        return max(time.time() - path.stat().st_mtime, 0.0)
    except OSError:
        return float("inf")


@lru_cache(maxsize=8)
def _tiles(file: Path, changed: int, rows: int, columns: int) -> list[list[Any]]:
    """Cut once for each version of the file."""
    return pictures.tiles(file, rows, columns)
