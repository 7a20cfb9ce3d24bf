"""The command line: what it prints where, its exit codes, and mistakes told in one line."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import typer.main
from rich.console import Console

from fewstep import cli
from fewstep.cli import doctor
from fewstep.cli.console import drawn
from fewstep.cli.models import REFUSED_COLUMNS, SHOWN, matrix
from fewstep.cli.models import refused as refused_models
from fewstep.config import Recipe, shipped
from fewstep.objectives import build
from fewstep.utils.checks import check_folder
from fewstep.utils.errors import FewstepError
from fewstep.utils.tables import cell
from refusals import names_in, refuses

ROOT = Path(__file__).resolve().parents[2]
TINY = """
model: {path: MODEL, options: {max_sequence_length: 8}}
data: {prompts: PROMPTS, batch_size: 2}
resolution: {height: 64, width: 64}
grid: {name: random, max_steps: 2}
objectives: [{name: ca}, {name: dm}, {name: cdm}]
student: {every: 1}
train: {steps: 2, warmup: 0}
checkpoint: {every: 1}
preview: {every: 2, count: 2, teacher: {steps: 2}}
health: {every: 2, count: 2}
evaluate:
  prompts: PROMPTS
  count: 3
  repeats: [1, 2]
  gallery: 2
  references: scenes
  metrics: [accuracy, frechet]
  configurations: [{model: teacher, steps: 3}, {model: student, steps: 4}]
criteria:
  - {name: minutes, figure: minutes, at_most: 60}
  - {name: accuracy, figure: student@4.accuracy, at_least: 0}
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe for a random SD3 pipeline of the real classes; a few seconds from end to end."""
    from toyworld_training.pipeline import build as build_pipeline

    folder = tmp_path_factory.mktemp("tiny")
    build_pipeline(0).save_pretrained(folder / "model")
    (folder / "prompts.txt").write_text("red circle\nblue square on gray\ngreen cross\n")
    text = TINY.replace("MODEL", str(folder / "model"))
    (folder / "tiny.yaml").write_text(text.replace("PROMPTS", str(folder / "prompts.txt")))
    return folder / "tiny.yaml"


@pytest.fixture(scope="module")
def finished(tiny: Path) -> Path:
    """A run folder that has been through every stage."""
    folder = tiny.parent / "run"
    assert cli.run(["demo", "--recipe", str(tiny), "--out", str(folder), "--json"]) == 0
    return folder


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The code of a mistake: exit code 2, one line on stderr, an object for programs on stdout."""
    capsys.readouterr()
    assert cli.run([*arguments, "--json"]) == 2
    printed = capsys.readouterr()
    error = json.loads(printed.out)["error"]
    assert printed.err == error["message"] + "\n"
    return error["code"]


def answer(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict:
    """The one JSON object of a command that went well."""
    capsys.readouterr()
    assert cli.run([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


# ------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["dstill"], "usage"),
        (["sample", "x", "--stps", "4"], "usage"),
        (["sample", "x", "--steps", "9", "--prompt", "a"], "usage"),
        (["sample", "x"], "missing-input"),
        (["sample", "x", "--prompts", "nowhere.txt"], "missing-file"),
        (["sample", "./nowhere", "--prompt", "a"], "missing-file"),
        (["distill"], "usage"),
        (["distill", "demoo"], "missing-file"),
        (["distill", "demo", "--set", "train.stepss=3"], "config"),
        (["distill", "demo", "--set", "train.steps=many"], "config"),
        (["distill", "demo", "--set", "train"], "config"),
        (["distill", "demo", "--set", "data.prompts=nowhere.txt"], "missing-file"),
        (["export", "./nowhere"], "missing-file"),
        (["evaluate", "demoo", "--teacher-only", "--out", "x"], "missing-file"),
        (["evaluate", "demo", "--teacher-only"], "missing-input"),
        (["evaluate", "./nowhere", "--out", "x"], "usage"),
        (["evaluate", "./nowhere"], "missing-file"),
        (["compare", "./nowhere"], "missing-input"),
        (["compare", "./nowhere", "./neither"], "missing-input"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(arguments, code, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert refused(arguments, capsys) == code
    assert list(tmp_path.iterdir()) == []


def test_without_json_a_mistake_leaves_stdout_alone(capsys):
    assert cli.run(["distill", "nowhere.yaml"]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and len(printed.err.splitlines()) == 1


@pytest.mark.parametrize("text", ["model: [", "- 1\n", "model: {path: x}\nmodle: {}\n", "\xff"])
def test_a_broken_recipe_is_one_line(text, capsys, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(text.encode("latin-1"))
    out = tmp_path / "run"
    assert refused(["distill", str(path), "--out", str(out)], capsys) == "config"
    assert not out.exists()


def test_an_objective_that_is_not_there_writes_nothing(tiny, capsys, tmp_path):
    out = tmp_path / "run"
    command = ["distill", str(tiny), "--out", str(out), "--set", "objectives=[{name: cdmm}]"]
    assert refused(command, capsys) in ("config", "unknown-name")
    assert not out.exists()


def test_a_bug_keeps_its_traceback(monkeypatch):
    class Bug(Exception):
        pass

    def broken(*_: object, **__: object) -> None:
        raise Bug

    monkeypatch.setattr(doctor, "examine", broken)
    with pytest.raises(Bug):
        cli.run(["doctor"])


def test_debug_shows_the_traceback_of_mistakes_too(monkeypatch):
    monkeypatch.setenv("FEWSTEP_DEBUG", "1")
    with pytest.raises(FewstepError):
        cli.run(["distill", "nowhere.yaml"])


# ------------------------------------------------------------------------------ processes


def process(*arguments: str, **more: object) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "fewstep", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False, **more)


def test_no_arguments_show_the_help():
    run = process()
    assert run.returncode == 0
    for name in ("demo", "distill", "sample", "evaluate", "export", "compare", "models", "doctor"):
        assert f"  {name}" in run.stdout
    assert "\x1b" not in run.stdout, "no colours into a pipe"
    assert "╭" not in run.stdout, "no frames into a pipe"


def test_a_mistake_in_a_process_exits_with_2():
    run = process("distill", "demoo")
    assert run.returncode == 2
    assert run.stdout == ""
    assert "Traceback" not in run.stderr
    assert len(run.stderr.splitlines()) == 1


def test_a_reader_that_leaves_is_no_error():
    python, source = sys.executable, ROOT / "src"
    line = f"PYTHONPATH='{source}' '{python}' -m fewstep --help | true"
    run = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True)
    assert "Traceback" not in run.stderr


def test_every_command_has_help_and_json():
    group = typer.main.get_command(cli.app)
    commands = dict(group.commands)
    for name, command in commands.items():
        if name != "world":
            assert command.help, name
            assert any("--json" in option.opts for option in command.params), f"{name} lacks --json"


# ------------------------------------------------------------------------------ commands


def test_version(capsys):
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("fewstep ")


def test_models_lists_what_can_be_distilled(capsys):
    rows = answer(["models"], capsys)["models"]
    assert any("StableDiffusion3Pipeline" in row["pipelines"] for row in rows)
    assert cli.run(["models"]) == 0
    assert "SD3-Medium" in capsys.readouterr().out


def test_tables_fit_80_columns_and_leave_nothing_out():
    tables = (
        (SHOWN, [[row[name] for name in SHOWN] for row in matrix()]),
        (REFUSED_COLUMNS, [[row[name] for name in REFUSED_COLUMNS] for row in refused_models()]),
        (("what", "where"), [["a long path", "/".join(["n" * 60] * 5)], ["a word", "w" * 300]]),
    )
    for columns, rows in tables:
        console = Console(file=io.StringIO(), width=80, color_system=None)
        console.print(drawn(columns, rows))
        shown = console.file.getvalue()
        assert max(map(len, shown.splitlines())) <= 80
        for value in (cell(value) for row in rows for value in row):
            assert Counter("".join(value.split())) <= Counter(shown), value


def test_doctor_tells_a_truncated_weight_file(tmp_path):
    from toyworld_training.pipeline import build as build_pipeline

    build_pipeline(0).save_pretrained(tmp_path)
    count, size = check_folder(tmp_path)
    assert count == 5
    assert size > 0
    weights = next(tmp_path.rglob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-7])
    with refuses("damaged", weights):
        check_folder(tmp_path)


def test_doctor_fails_where_it_may_not_write(monkeypatch, tmp_path):
    def forbidden(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", forbidden)
    report = doctor.examine(tmp_path / "not" / "yet")
    checks = {check["name"]: check for check in report["checks"]}
    assert checks["write here"]["status"] == "fail"
    assert checks["write here"]["fix"]
    assert checks["python"]["status"] == checks["torch"]["status"] == "ok"
    assert not report["ok"]


def test_doctor_shows_only_what_is_not_well_unless_asked(capsys, monkeypatch):
    def shown(*more: str) -> set[str]:
        assert cli.run(["doctor", *more]) in (0, 1)
        return names_in(capsys.readouterr().out)

    assert not {"python", "torch"} & shown() and {"python", "torch"} <= shown("--all")
    monkeypatch.setattr(doctor, "DISK_GB", 1e9)
    assert "disk" in shown() and "python" not in shown()
    assert {"disk", "python"} <= shown("--all")
    assert {check["name"] for check in answer(["doctor"], capsys)["checks"]} >= {"python", "disk"}


def test_doctor_asks_about_the_demo_only_on_request(capsys):
    names = [
        {check["name"] for check in answer(["doctor", *more], capsys)["checks"]}
        for more in ([], ["--demo"])
    ]
    assert "tiny world" in names[1] - names[0]
    assert names[0] < names[1]


def test_from_recipe_to_report(finished, capsys):
    for name in ("config.yaml", "metrics.jsonl", "summary.json", "report.html", "export/README.md"):
        assert (finished / name).is_file(), name
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["criteria_met"] is True and len(summary["criteria"]) == 2
    assert summary["seconds"] > 0


def test_a_demo_that_did_not_draw_the_teacher_does_not_claim_its_minutes(finished, tiny, capsys):
    again = tiny.parent / "again"
    assert cli.run(["demo", "--recipe", str(tiny), "--out", str(again)]) == 0
    assert "an earlier run's" in capsys.readouterr().err
    summary = json.loads((again / "summary.json").read_text())
    minutes, accuracy = summary["criteria"]
    assert summary["seconds"] is None and minutes["met"] is None and accuracy["met"] is True
    assert summary["criteria_met"] is None


def test_figures_of_the_teacher_that_ship_with_a_recipe_are_not_drawn_again(
    tiny, capsys, tmp_path, monkeypatch
):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "empty"))
    command = ["evaluate", str(tiny), "--teacher-only", "--out", str(tmp_path / "shipped")]
    files = answer(command, capsys)["files"]
    assert all(Path(file).is_file() for file in files.values())
    command = ["demo", "--recipe", str(tiny), "--out", str(tmp_path / "run")]
    summary = answer([*command, "--set", f"evaluate.cache={tmp_path / 'shipped'}"], capsys)
    assert summary["seconds"] > 0 and summary["criteria_met"] is True
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    places = {row["name"]: row["measured"]["where"] for row in evaluation["configurations"]}
    assert {name for name, place in places.items() if place == "shipped"} == files.keys()


def test_evaluate_prints_a_table(finished, capsys):
    assert cli.run(["evaluate", str(finished)]) == 0
    said = capsys.readouterr().out
    assert "student@4" in said
    assert "report.html" in said


def test_export_and_sample(finished, capsys, tmp_path):
    out = tmp_path / "student"
    assert answer(["export", str(finished), "--out", str(out)], capsys)["folder"] == str(out)
    drawn = tmp_path / "drawn"
    command = ["sample", str(out), "--prompt", "red circle", "--steps", "2", "--out", str(drawn)]
    made = answer(command, capsys)
    assert [row["prompt"] for row in made["images"]] == ["red circle"]
    assert (drawn / made["images"][0]["file"]).is_file()


def test_compare_puts_runs_side_by_side(finished, capsys):
    found = answer(["compare", str(finished), str(finished)], capsys)
    left, right = found["figures"]["student@4.evaluations"]
    assert left == right == 4
    assert cli.run(["compare", str(finished), str(finished)]) == 0
    assert "student@4.evaluations" in capsys.readouterr().out


def test_distill_resumes_and_refuses_to_overwrite(tiny, capsys, tmp_path):
    command = ["distill", str(tiny), "--out", str(tmp_path / "run")]
    assert answer(command, capsys)["finished"]
    assert refused(command, capsys) == "exists"
    more = [*command, "--resume", "--set", "train.steps=3"]
    assert answer(more, capsys) == {"run": str(tmp_path / "run"), "step": 3, "finished": True}


def test_a_run_folder_is_all_that_resuming_needs(tiny, capsys, tmp_path):
    run = str(tmp_path / "run")
    assert answer(["distill", str(tiny), "--out", run], capsys)["finished"]
    assert refused(["distill", run], capsys) == "exists"
    more = ["distill", run, "--resume", "--set", "train.steps=3"]
    assert answer(more, capsys) == {"run": run, "step": 3, "finished": True}
    assert answer(["distill", run, "--resume"], capsys)["step"] == 3
    (tmp_path / "run" / "config.yaml").write_text("model: [")
    assert refused(["distill", run, "--resume"], capsys) == "config"


# ------------------------------------------------------------------------------ recipes


def test_recipes_are_listed_printed_and_copied(capsys, tmp_path):
    rows = answer(["recipes"], capsys)["recipes"]
    assert [row["name"] for row in rows] == shipped.available()
    assert all(row["about"] and row["model"] for row in rows)
    text = shipped.find("sdxl-lora").read_text(encoding="utf-8")
    assert answer(["recipes", "sdxl-lora"], capsys)["text"] == text
    assert cli.run(["recipes", "sdxl-lora"]) == 0
    assert capsys.readouterr().out.rstrip() == text.rstrip()
    copy = tmp_path / "mine" / "copy.yaml"
    for code in (0, 2):
        assert cli.run(["recipes", "sdxl-lora", "--to", str(copy)]) == code
        assert copy.read_text(encoding="utf-8") == text
        assert [each.name for each in copy.parent.iterdir()] == ["copy.yaml"]


@pytest.mark.parametrize("name", shipped.available())
def test_every_recipe_is_valid(name, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n")
    yours = [] if name.startswith("demo") else [f"data.prompts={prompts}"]
    given = Recipe.named(name, yours)
    assert given.objectives
    for objective in given.objectives:
        assert build(objective.name, **objective.settings).name == objective.name
    text = shipped.find(name).read_text(encoding="utf-8")
    assert text.startswith("#"), "a recipe begins with what it is for and its command"


def test_recipes_nobody_ran_say_so():
    for name in shipped.available():
        if not name.startswith("demo"):
            text = shipped.find(name).read_text(encoding="utf-8")
            assert "untested at full size here" in text
