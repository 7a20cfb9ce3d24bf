"""A package outside the source tree adds to every open end of evaluation, and a run uses it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fewstep.config import ConfigError
from fewstep.train.monitor.preview_scores import preview_score
from plugin import make_plugin

ROOT = Path(__file__).resolve().parents[2]
MODULE = '''
import torch
import typer

from fewstep.evaluation.metrics.base import Metric, mean_and_error
from fewstep.utils.checks import Check


class Redness(Metric):
    """How red pictures are, by prompts that ask for red and others; reads both."""

    name = "redness"
    word: str

    def prepare(self, prompts):
        assert any(self.word in prompt for prompt in prompts)

    def measure(self, prompts, images):
        asked = torch.tensor([self.word in prompt for prompt in prompts])
        return torch.stack([asked.float(), images[:, 0].mean((1, 2))], dim=1)

    def __call__(self, measurements, references):
        asked, red = measurements.values["redness"].single.T
        figures = mean_and_error("redness", red[asked.bool()])
        return figures | {"redness_asked": float(asked.sum())}


class Mean:
    key = "mean"

    def __call__(self, images):
        return images.mean((2, 3))


class Noise:
    paired = True

    def draw(self, prompts, seed, size):
        generator = torch.Generator().manual_seed(seed)
        for prompt in prompts:
            yield torch.rand(1, 3, *size, generator=generator)


def brightness(images, prompts, teacher_images):
    return float(images.mean())


def checks():
    yield Check("battery", "ok", "full")


greet = typer.Typer()


@greet.command()
def hello():
    typer.echo("hello")


@greet.command()
def again():
    typer.echo("again")
'''
ENDS = {
    "fewstep.metrics": {"redness": "my_ends:Redness"},
    "fewstep.features": {"mean": "my_ends:Mean"},
    "fewstep.references": {"noise": "my_ends:Noise"},
    "fewstep.preview_scores": {"brightness": "my_ends:brightness"},
    "fewstep.checks": {"battery": "my_ends:checks"},
    "fewstep.commands": {"greet": "my_ends:greet"},
}
RECIPE = """
model: {path: MODEL, options: {max_sequence_length: 8}}
data: {prompts: PROMPTS, batch_size: 2}
resolution: {height: 64, width: 64}
objectives: [{name: dm}]
student: {every: 1}
train: {steps: 1, warmup: 0}
preview: {every: 1, count: 2, teacher: {steps: 2}, score: brightness}
health: {every: 2, count: 2}
evaluate:
  prompts: PROMPTS
  repeats: [1, 2]
  gallery: 1
  metrics: [frechet, {name: redness, word: red}]
  features: mean
  references: noise
  configurations: [{model: teacher, steps: 3}, {model: student, steps: 4}]
criteria:
  - {name: red, figure: student@4.redness_asked, at_least: 2}
"""


@pytest.fixture(scope="module")
def fewstep(tmp_path_factory):
    """The command line in a process of its own that has the package installed."""
    folder = make_plugin(tmp_path_factory.mktemp("plugin"), ENDS, {"my_ends.py": MODULE})
    path = os.pathsep.join([str(ROOT / "src"), str(folder)])

    def call(*arguments):
        env = os.environ | {"PYTHONPATH": path}
        command = [sys.executable, "-m", "fewstep", *arguments]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


def test_a_run_uses_a_metric_a_feature_space_references_and_a_preview_score(
    fewstep, pipeline_folder, tmp_path
):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("red circle\nblue square\ngreen cross and red square\n")
    text = RECIPE.replace("MODEL", str(pipeline_folder)).replace("PROMPTS", str(prompts))
    (tmp_path / "mine.yaml").write_text(text)
    command = ["demo", "--recipe", str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "run")]
    summary = json.loads(fewstep(*command, "--json"))
    figures = summary["configurations"]["student@4"]
    assert 0 < figures["redness"] < 1 and figures["redness_error"] > 0
    assert figures["frechet_real"] > 0 and figures["frechet_teacher"] > 0
    assert summary["criteria_met"] is True
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert evaluation["features"] == "mean" and evaluation["real"]["figures"]["redness"] > 0
    assert evaluation["columns"]["redness"]["higher_is_better"] is True
    page = (tmp_path / "run" / "report.html").read_text()
    assert "redness" in page
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    scores = [row["preview/score"] for row in map(json.loads, lines) if "preview/score" in row]
    assert scores and all(0 < score < 1 for score in scores)


@pytest.mark.slow
def test_a_command_of_a_package_is_one_of_fewsteps(fewstep):
    assert fewstep("greet", "hello").strip() == "hello"
    assert "greet" in fewstep("--help")


def test_recipes_do_not_import_code():
    with pytest.raises(ConfigError):
        preview_score("my_ends:brightness")
