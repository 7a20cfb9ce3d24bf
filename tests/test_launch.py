"""The launch files are sound, and what they start is a command that there is."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer

from fewstep.cli import app
from fewstep.config import Recipe
from fewstep.config.shipped import find
from fewstep.config.strict import parse_override, set_value
from fewstep.utils import yaml

LAUNCH = Path(__file__).resolve().parent.parent / "launch"
SCRIPTS = [LAUNCH / "torchrun.sh", LAUNCH / "slurm.sbatch"]
VALUES = {"recipe": "sd3.5-medium-lora", "RECIPE": "sd3.5-medium-lora", "nodes": "2"}


def text_of(path: Path) -> str:
    """The shell text of a launch file."""
    if path.suffix == ".yaml":
        return yaml.load(path.read_text(encoding="utf-8"))["run"]
    return path.read_text(encoding="utf-8")


def command_of(path: Path) -> list[str]:
    """The words after ``-m fewstep``, with shell variables filled in."""
    joined = text_of(path).replace("\\\n", " ")
    (line,) = re.findall(r"-m fewstep (.*)", joined)
    line = line.replace('"$@"', "").rstrip(" &")
    for share in re.findall(r"share=\((.*)\)", joined)[-1:]:
        line = line.replace('"${share[@]}"', share)
    line = re.sub(r"\$(\w+)", lambda found: VALUES[found[1]], line)
    return shlex.split(line)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_the_shell_can_read_it(path: Path):
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_the_yaml_can_be_read(tmp_path: Path):
    task = yaml.load((LAUNCH / "skypilot.yaml").read_text(encoding="utf-8"))
    assert task["resources"]["use_spot"] is True
    assert {"name", "resources", "setup", "run", "file_mounts"} <= task.keys()
    for part in ("setup", "run"):
        file = tmp_path / part
        file.write_text(task[part], encoding="utf-8")
        subprocess.run(["bash", "-n", str(file)], check=True)


@pytest.mark.parametrize("path", sorted(LAUNCH.iterdir()), ids=lambda path: path.name)
def test_the_command_is_one(path: Path):
    name, *arguments = command_of(path)
    command = typer.main.get_command(app).commands[name]
    given = command.make_context(name, list(arguments)).params
    assert given["resume"] is True, "started again, a launched run goes on"
    find(given["recipe"])
    data: dict = {}
    for override in given["overrides"] or ():
        set_value(data, *parse_override(override), Recipe)
    Recipe.model_fields["parallel"].annotation.model_validate(data.get("parallel", {}))
