"""The pages that say how to add something work: their files, installed as they say, in a real run.

Of a page, the n-th ```python block is the module that the n-th ```toml block names, and every
```yaml block is part of a recipe.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from fewstep.utils import yaml
from plugin import make_plugin

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("add-an-objective.md", "add-a-metric.md", "add-a-sink.md", "add-an-export-format.md")
RECIPE = """
model: {path: MODEL, options: {max_sequence_length: 8}}
data: {prompts: PROMPTS, batch_size: 2}
resolution: {height: 64, width: 64}
objectives: [{name: dm}]
student: {every: 1}
train: {steps: 1, warmup: 0}
preview: {every: 1, count: 2, teacher: {steps: 2}}
health: {every: 2, count: 2}
evaluate:
  prompts: PROMPTS
  repeats: [1, 2]
  gallery: 1
  configurations: [{model: teacher, steps: 5}, {model: teacher, steps: 4}, {model: student, steps: 4}]
"""  # noqa: E501


def blocks(page: str, language: str) -> list[str]:
    """The blocks of code of a page that are marked as of this language."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def merge(into: dict[str, Any], part: Mapping[str, Any]) -> None:
    """Puts part of a recipe into a recipe; a list replaces a list."""
    for key, value in part.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value


def install(folder: Path) -> Path:
    """A distribution with the files and entry points of all pages."""
    modules: dict[str, str] = {}
    ends: dict[str, dict[str, str]] = {}
    for page in PAGES:
        for source, points in zip(blocks(page, "python"), blocks(page, "toml"), strict=True):
            groups = tomllib.loads(points)["project"]["entry-points"]
            for group, members in groups.items():
                ends.setdefault(group, {}).update(members)
                modules |= {f"{m.partition(':')[0]}.py": source for m in members.values()}
    return make_plugin(folder, ends, modules)


@pytest.fixture(scope="module")
def fewstep(tmp_path_factory) -> Callable[..., None]:
    """The command line in a process of its own, where the files of all pages are installed."""
    plugin = install(tmp_path_factory.mktemp("plugin"))
    path = os.pathsep.join([str(ROOT / "src"), str(plugin)])

    def call(*arguments: str | Path) -> None:
        command = [sys.executable, "-m", "fewstep", *map(str, arguments)]
        environment = os.environ | {"PYTHONPATH": path}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    return call


@pytest.fixture(scope="module")
def run(tmp_path_factory, pipeline_folder, fewstep) -> Path:
    """A run, evaluated and exported, whose recipe is what the pages say, all of them together."""
    folder = tmp_path_factory.mktemp("pages")
    prompts = folder / "prompts.txt"
    prompts.write_text("red circle\nblue square\ngreen cross and red square\n")
    text = RECIPE.replace("MODEL", str(pipeline_folder)).replace("PROMPTS", str(prompts))
    recipe = yaml.load(text)
    for page in PAGES:
        for part in blocks(page, "yaml"):
            merge(recipe, yaml.load(part))
    (folder / "mine.yaml").write_text(yaml.dump(recipe))
    fewstep("demo", "--recipe", folder / "mine.yaml", "--out", folder / "run")
    return folder / "run"


def steps(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_objective_is_trained_with(run):
    assert steps(run)[-1]["loss/guidance_between"] > 0


def test_the_metric_is_in_figures_report_and_criteria(run):
    summary = json.loads((run / "summary.json").read_text())
    figures = summary["configurations"]["student@4"]
    assert figures["sharpness"] > 0 and figures["lead_sharpness_error"] > 0
    assert summary["criteria_met"] is True
    assert "sharpness" in (run / "report.html").read_text()


def test_the_preview_score_rates_previews(run):
    assert 0 < steps(run)[-1]["preview/score"] < 1


def test_the_sink_gets_every_figure(run):
    rows = [line.split(",") for line in (run / "figures.csv").read_text().splitlines()]
    assert {(0, "preview/score"), (1, "loss/dm")} <= {(int(step), name) for step, name, _ in rows}


def test_the_format_is_exported_to(run, fewstep, tmp_path):
    fewstep("export", run, "--format", "bare", "--out", tmp_path / "bare")
    assert load_file(tmp_path / "bare" / "student.safetensors")
    assert "load_state_dict" in (tmp_path / "bare" / "README.md").read_text()
