"""What a newcomer meets first: pins, package data, the two commands, a clean repository."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import typer.main
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import fewstep
from fewstep.cli import app

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def pins() -> dict[str, Version]:
    """Name -> version of every line of constraints.txt; other lines than names==versions fail."""
    found = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([0-9][0-9A-Za-z.]*)", line)
            assert match, f"constraints.txt: {line!r} is not name==version"
            found[canonicalize_name(match[1])] = Version(match[2])
    return found


def declared() -> list[Requirement]:
    project = PYPROJECT["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    return [Requirement(line) for line in [*project["dependencies"], *extras]]


def files() -> list[Path]:
    """Files under version control, or, without git, those that a source archive would hold."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode == 0 and listed.stdout:
        names = listed.stdout.decode().split("\0")
        return [ROOT / name for name in names if name and (ROOT / name).is_file()]
    skipped = re.compile(
        r"(^|/)(\.venv|\.[a-z]+_cache|build|dist|runs|.*egg-info|__pycache__)(/|$)"
    )
    inside = (path for path in ROOT.rglob("*") if path.is_file())
    return [path for path in inside if not skipped.search(str(path.relative_to(ROOT)))]


@pytest.mark.parametrize("requirement", declared(), ids=str)
def test_constraints_cover_what_is_declared(requirement: Requirement):
    pinned = pins().get(canonicalize_name(requirement.name))
    assert pinned is not None, f"constraints.txt lacks {requirement.name}"
    assert requirement.specifier.contains(pinned), f"{requirement} excludes the pinned {pinned}"
    assert requirement.specifier, f"{requirement.name} has no lower bound"


def test_versions_agree():
    assert fewstep.__version__ == Version(fewstep.__version__).base_version
    assert f"version: {fewstep.__version__}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_no_addresses_of_registries_or_machines():
    host = "|".join(["py" + r"pi\.org", "python" + "hosted", r"download\.py" + r"torch\.org"])
    option = "--(extra-)?index" + "-url|--find" + "-links|trusted" + "-host"
    place = "(?<![\\w.])/(root|home|work|opt|Users|mnt)" + "/[a-z]"
    bad = re.compile(f"{host}|{option}|{place}", re.IGNORECASE)
    found = []
    for path in files():
        data = path.read_bytes()
        if b"\0" in data[:4096]:
            continue
        for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
            if bad.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert not found, "\n".join(found)


def test_a_wheel_holds_the_package_data(tmp_path: Path):
    copy = tmp_path / "source"
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", copy / "src", ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    subprocess.run([*command, "-w", tmp_path, copy], check=True, stdin=subprocess.DEVNULL)
    [wheel] = tmp_path.glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("fewstep/")}
    wanted = {
        str(path.relative_to(copy / "src"))
        for path in (copy / "src" / "fewstep").rglob("*")
        if path.is_file()
    }
    assert wanted - held == set(), "the wheel lacks files of the package"
    assert "fewstep/recipes/demo.yaml" in held


def shell_lines() -> list[tuple[str, str]]:
    """(file, command) for every line of every ```sh block in the documents."""
    found = []
    for path in DOCS:
        if path.is_file():
            for block in re.findall(
                r"```sh\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL
            ):
                joined = block.replace("\\\n", " ")
                commands = [line.split(" #")[0].strip() for line in joined.splitlines()]
                found += [(path.name, c) for c in commands if c and not c.startswith("#")]
    return found


def check_fewstep(arguments: list[str]) -> None:
    """Parse a command line as the command itself would, without running it."""
    context = typer.main.get_command(app).make_context("fewstep", list(arguments))
    while (rest := [*context._protected_args, *context.args]) and hasattr(
        context.command, "commands"
    ):
        name, command, arguments = context.command.resolve_command(context, rest)
        context = command.make_context(name, arguments, parent=context)


@pytest.mark.parametrize(("document", "command"), shell_lines())
def test_commands_in_the_documents_exist(document: str, command: str):
    words = [word for word in shlex.split(command) if not re.fullmatch(r"[A-Z_]+=\S*", word)]
    if words[:3] == ["python", "-m", "fewstep"]:
        words = words[2:]
    if words[0] == "fewstep":
        check_fewstep(words[1:])
    elif words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words[1:]) <= set(targets), f"{document}: {command}"
    elif words[0].startswith("."):
        assert (ROOT / words[0]).is_file(), f"{document}: {command}"
    else:
        assert words[0] in {"git", "pip", "python", "cd", "pre-commit"}, f"{document}: {command}"


def test_the_documents_point_at_files_that_exist():
    for path in DOCS:
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path.name} points at {target}"


def test_the_map_in_the_readme_is_complete():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    package = ROOT / "src" / "fewstep"
    rooms = [path for path in package.iterdir() if not path.name.startswith(("_", "."))]
    names = {f"{path.name}/" if path.is_dir() else path.name for path in rooms} - {"py.typed"}
    documents = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
    missing = sorted(name for name in names | documents if name not in text)
    assert not missing, f"README.md's map lacks {missing}"


def test_the_environment_script_reuses_a_complete_python(tmp_path: Path):
    env = {"PATH": "/usr/bin:/bin", "FEWSTEP_PYTHON": sys.executable, "HOME": str(tmp_path)}
    script = ["sh", str(ROOT / "tools" / "python.sh")]
    run = subprocess.run(script, env=env, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == sys.executable
    assert run.stderr == ""


def test_the_environment_script_refuses_an_unfit_python(tmp_path: Path):
    env = {"PATH": "/usr/bin:/bin", "FEWSTEP_PYTHON": "/bin/false", "HOME": str(tmp_path)}
    script = ["sh", str(ROOT / "tools" / "python.sh")]
    run = subprocess.run(script, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stdout == ""
    assert "3.11" in run.stderr
    assert len(run.stderr.splitlines()) == 1
