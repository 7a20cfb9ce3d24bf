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
from typing import Any

import typer.main
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import fewstep
from fewstep.cli import app

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAMS = {"export", "git", "pip", "python", "cd", "pre-commit"}


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


def test_constraints_cover_what_is_declared():
    found, pinned = [], pins()
    for requirement in declared():
        pin = pinned.get(canonicalize_name(requirement.name))
        if pin is None:
            found.append(f"constraints.txt lacks {requirement.name}")
        elif not requirement.specifier.contains(pin):
            found.append(f"{requirement} excludes the pinned {pin}")
        if not requirement.specifier:
            found.append(f"{requirement.name} has no lower bound")
    assert not found, "\n".join(found)


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


def shell_lines(path: Path) -> list[str]:
    """Every command of every ```sh block of a document."""
    found = []
    for block in re.findall(r"```sh\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL):
        lines = block.replace("\\\n", " ").splitlines()
        found += [line.split(" #")[0].strip() for line in lines]
    return [line for line in found if line and not line.startswith("#")]


def check_fewstep(arguments: list[str]) -> None:
    """Parse a command line as the command itself would, without running it."""
    command: Any = typer.main.get_command(app)
    name = "fewstep"
    while arguments and hasattr(command, "commands") and not arguments[0].startswith("-"):
        name, *arguments = arguments
        command = command.commands[name]
    command.make_context(name, arguments)


def fault(command: str) -> str:
    """What is wrong with a command in a document; empty: nothing."""
    words = [word for word in shlex.split(command) if not re.fullmatch(r"[A-Z_]+=\S*", word)]
    if words[:3] == ["python", "-m", "fewstep"]:
        words = words[2:]
    program, *arguments = words
    if program == "fewstep":
        try:
            check_fewstep(arguments)
        except typer.Exit:  # --help and --version
            return ""
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    elif program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        gone = {word for word in arguments if "=" not in word} - set(targets)
        return f"no target {gone}" if gone else ""
    elif program.startswith("."):
        return "" if (ROOT / program).is_file() else "no such file"
    elif program == "python" and arguments[0].endswith(".py"):
        return "" if (ROOT / arguments[0]).is_file() else "no such file"
    return "" if program in {*PROGRAMS, "fewstep", "make"} else "unknown program"


def test_commands_in_the_documents_exist():
    checked = [(path.name, line, fault(line)) for path in DOCS for line in shell_lines(path)]
    assert checked
    found = [f"{document}: {line}: {what}" for document, line, what in checked if what]
    assert not found, "\n".join(found)


def links(path: Path) -> set[Path]:
    """Files that a document points at."""
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    return {(path.parent / target).resolve() for target in targets}


def test_the_documents_point_at_files_that_exist():
    found = [
        f"{path.name} points at {target.relative_to(ROOT)}"
        for path in DOCS
        for target in links(path)
        if not target.exists()
    ]
    assert not found, "\n".join(found)


def test_lines_of_documents_are_120_characters_at_most():
    found = [
        f"{path.relative_to(ROOT)}:{number}: {len(line)}"
        for path in DOCS
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > 120
    ]
    assert not found, "\n".join(found)


def test_every_document_can_be_reached_from_the_readme():
    reached, new = set(), {ROOT / "README.md"}
    while new:
        reached |= new
        new = {to for path in new for to in links(path) if to.suffix == ".md"} - reached
    lost = [str(path.relative_to(ROOT)) for path in DOCS if path not in reached]
    assert not lost, f"no link leads from README.md to {lost}"


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
