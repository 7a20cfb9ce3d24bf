"""Sinks get the measurements and pictures of a run, and none of them can end it."""

from __future__ import annotations

import io
import json
import re
import sys

import pytest
from PIL import Image
from rich.console import Console

from fewstep.config import Recipe
from fewstep.train import distill
from fewstep.train.monitor.logger import Logger
from fewstep.train.monitor.sinks import SINKS
from fewstep.train.monitor.sinks.metrics_file import METRICS, last_step, truncate
from fewstep.utils.errors import FewstepError
from plugin import make_plugin

SINK = '''
import json

class Sink:
    """Writes what it gets to a file, and can be made to fail."""

    def __init__(self, *, file="sink.jsonl", fails_in=()):
        self.file, self.fails_in = file, fails_in

    def tell(self, event, **content):
        if event in self.fails_in:
            raise OSError(f"{event}: the network is down")
        with self.path.open("a") as file:
            file.write(json.dumps({"event": event, **content}) + "\\n")

    def open(self, folder, config, *, after):
        self.path = folder / self.file
        self.tell("open", steps=config["train.steps"], after=after)

    def write(self, step, scalars, pictures):
        sizes = {name: picture.size for name, picture in pictures.items()}
        self.tell("write", step=step, scalars=scalars, pictures=sizes)

    def close(self):
        self.tell("close")
'''
TRACKER = '''
"""As much of the package `swanlab` as accelerate's adapter for it calls."""

events = []

class Run:
    def log(self, data, step=None, **settings):
        events.append(("log", step, data))

    def finish(self):
        events.append(("finish",))

class Config(dict):
    def update(self, values, **settings):
        events.append(("config", values))

class Image:
    def __init__(self, picture):
        self.picture = picture

config = Config()

def init(**settings):
    events.append(("init", settings))
    return Run()
'''


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A sink ``outside`` in a distribution of its own, and a tracker's package."""
    points = {"fewstep.sinks": {"outside": "outside_sink:Sink"}}
    modules = {"outside_sink.py": SINK, "swanlab.py": TRACKER}
    monkeypatch.syspath_prepend(make_plugin(tmp_path / "plugin", points, modules))
    yield
    sys.modules.pop("swanlab", None)


def run(recipe, folder, **settings) -> str:
    console = Console(file=io.StringIO(), width=300)
    distill(recipe, folder, console=console, **settings)
    return console.file.getvalue()


def events_of(file) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_sink_of_another_package_gets_all_that_is_measured_and_drawn(
    plugin, make_recipe, tmp_path
):
    assert "outside" in SINKS.available()
    folder, few = tmp_path / "run", ("train.steps=2", "preview.every=2", "checkpoint.every=2")
    run(make_recipe(*few, "log.sinks=[outside]"), folder)
    first, *events, last = events_of(folder / "sink.jsonl")
    assert first == {"event": "open", "steps": 2, "after": -1}
    assert last == {"event": "close"}
    written = [{"step": each["step"], **each["scalars"]} for each in events if each["scalars"]]
    assert written == events_of(folder / METRICS)
    pictures = {each["step"]: each["pictures"] for each in events if each["pictures"]}
    assert pictures.keys() == {0, 2}
    for step, sizes in pictures.items():
        picture = Image.open(folder / "previews" / f"step-{step:08d}.png")
        assert sizes == {"preview": list(picture.size)}

    again = make_recipe(*few, "train.steps=3", "log.sinks=[{name: outside, file: again.jsonl}]")
    run(again, folder, resume=True)
    first, *events, _ = events_of(folder / "again.jsonl")
    assert first["after"] == 2
    assert {each["step"] for each in events} == {3}


def test_a_sink_that_fails_is_named_once_and_the_run_goes_on(plugin, make_recipe, tmp_path):
    few = ("train.steps=2", "checkpoint.every=2")
    run(make_recipe(*few), tmp_path / "plain")
    setting = "log.sinks=[{name: outside, fails_in: [write, close]}]"
    output = run(make_recipe(*few, setting), tmp_path / "failing")
    assert output.count("the network is down") == 1
    plain, failing = (tmp_path / name / METRICS for name in ("plain", "failing"))
    assert [each.keys() for each in events_of(plain)] == [
        each.keys() for each in events_of(failing)
    ]


@pytest.mark.parametrize(
    ("sinks", "code"),
    [
        ("[outsied]", "unknown-name"),
        ("[{name: outside, fiel: x}]", "config"),
        ("[swanlab, outside, swanlab]", "config"),
        ("[3]", "config"),
        ("[mlflow]", "missing-dependency"),
        ("[tensorboard]", "missing-dependency"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_written(
    sinks, code, plugin, make_recipe, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(FewstepError) as caught:
        run(make_recipe(f"log.sinks={sinks}"), tmp_path / "run")
    assert caught.value.code == code
    assert not (tmp_path / "run").exists()


def test_a_sink_that_cannot_be_opened_ends_the_run_at_its_start(plugin, make_recipe, tmp_path):
    with pytest.raises(FewstepError) as caught:
        run(make_recipe("log.sinks=[{name: outside, fails_in: [open]}]"), tmp_path / "run")
    assert caught.value.code == "no-access"
    assert last_step(tmp_path / "run" / METRICS) == 0


def test_a_tracker_of_accelerate_gets_recipe_scalars_and_pictures(plugin, make_recipe, tmp_path):
    recipe = make_recipe("train.steps=2", "log.sinks=[{name: swanlab, project: few, mode: local}]")
    run(recipe, tmp_path / "run")
    import swanlab

    (start, settings), (_, config), *logged, end = swanlab.events
    assert (start, settings) == ("init", {"project": "few", "mode": "local"})
    assert (config["train.steps"], config["objectives.0.name"]) == (2, "ca")
    assert end == ("finish",)
    scalars = [{"step": step, **data} for _, step, data in logged if "preview" not in data]
    assert scalars == events_of(tmp_path / "run" / METRICS)
    pictures = {step: data["preview"] for _, step, data in logged if "preview" in data}
    assert pictures.keys() == {0, 2}
    assert all(one.picture.size[0] > 64 for (one,) in pictures.values())


def test_tensorboard_has_scalars_and_pictures(make_recipe, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    few = ("log.sinks=[tensorboard]", "checkpoint.every=2", "preview.every=2")
    run(make_recipe(*few, "train.steps=2"), tmp_path / "run")
    run(make_recipe(*few, "train.steps=4"), tmp_path / "run", resume=True)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [each.step for each in events.Scalars("loss/fake_teacher")] == [1, 2, 3, 4]
    assert [each.step for each in events.Images("preview")] == [0, 2, 4]


def test_an_older_recipe_that_asked_for_tensorboard_has_its_sink(make_recipe):
    saved = make_recipe("log.sinks=[tensorboard]").model_dump(mode="json")
    older = saved | {"log": {"every": 1, "tensorboard": True}}
    assert Recipe.from_saved(older).model_dump(mode="json") == saved


def test_lines_of_a_lost_future_are_dropped(tmp_path):
    file = tmp_path / METRICS
    file.write_text('{"step": 1, "a": 0.1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "a"')
    assert last_step(file) == 3
    truncate(file, 2)
    assert file.read_text() == '{"step": 1, "a": 0.1}\n{"step": 2}\n'


def test_the_progress_line_keeps_bar_step_and_time_left_at_80_columns(tmp_path):
    recipe = Recipe.named("demo", {"train.steps": 1234})
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    figures = {"loss/fake_teacher": 0.0597, "loss/ca": 19.4, "loss/dm": 9.15e-07, "loss/cdm": 5e-8}
    figures |= {"images_per_second": 1.6, "evaluations": 123456.0, "memory_gb": 15.2}
    logger = Logger(tmp_path, recipe, console=console)
    with logger.opened(0):
        logger.record(617, figures | {"preview/score": -0.1227})
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", console.file.getvalue()).splitlines()
    bar = [line for line in shown if "/1234" in line][-1]
    assert re.search(r"━{10}.{10} +617/1234 +([\d-]+:)+[\d-]+", bar) and len(bar) <= 80
    assert all(len(line) <= 80 for line in shown)
    words = " ".join(shown)
    assert all(name in words for name in ("fake_teacher", "cdm", "images/s", "preview score"))
