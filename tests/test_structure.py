"""The house stands: imports run down only, files stay small, tests state laws.

Every test collects all offenders, so that one run tells all there is to mend.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src" / "fewstep"
# A package imports from those of its own line and of the lines above it; the Python door from all.
LEVELS = """
utils
core
models config
objectives data
train
export planning
inference
evaluation
report
toyworld recipes
cli __main__ __init__
"""
LEVEL_OF = {name: n for n, line in enumerate(LEVELS.split("\n")) for name in line.split()}
MAX_LINES, MAX_FUNCTION = 400, 60
STREAMS = {"shared", "normal", "uniform", "integers"}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def python_files(*folders: str) -> list[Path]:
    return sorted(path for each in folders for path in (ROOT / each).rglob("*.py"))


def nodes(path: Path, *kinds: type) -> Iterator[ast.AST]:
    return (node for node in ast.walk(parsed(path)) if isinstance(node, kinds))


def place(path: Path, node: ast.AST | None = None) -> str:
    return f"{path.relative_to(ROOT)}" + (f":{node.lineno}" if node is not None else "")


def refuse(offenders: list[str]) -> None:
    """Fails with all of them, one a line."""
    assert not offenders, f"{len(offenders)} offenders:\n" + "\n".join(offenders)


def package_of(path: Path) -> str:
    """First name below ``fewstep``: ``train`` for train/step.py."""
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[tuple[ast.AST, str]]:
    """Every import of a file, at any depth, as an absolute name."""
    package = ["fewstep", *path.relative_to(SRC).parent.parts]
    for node in nodes(path, ast.Import, ast.ImportFrom):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        else:
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node, f"{base}.{alias.name}") for alias in node.names)


def packages_used(path: Path) -> Iterator[tuple[ast.AST, str]]:
    """The packages of fewstep, other than its own, that a file imports from."""
    for node, name in imported(path):
        first, _, rest = name.partition(".")
        used = rest.split(".")[0]
        if first == "fewstep" and used not in ("", "__version__", package_of(path)):
            yield node, used if (SRC / used).exists() or (SRC / f"{used}.py").exists() else "?"


# ------------------------------------------------------------------------------ the package


def test_imports_run_down_only():
    found = []
    for path in python_files("src"):
        own = package_of(path)
        if own not in LEVEL_OF:
            found.append(f"{place(path)}: {own} has no level")
            continue
        for node, used in packages_used(path):
            if LEVEL_OF.get(used, 99) > LEVEL_OF[own]:
                found.append(f"{place(path, node)}: fewstep.{own} imports fewstep.{used}")
    refuse(found)


def test_packages_form_no_circle():
    graph: dict[str, set[str]] = defaultdict(set)
    for path in python_files("src"):
        graph[package_of(path)] |= {used for _, used in packages_used(path)}
    done: set[str] = set()

    def visit(package: str, trail: tuple[str, ...]) -> None:
        assert package not in trail, " -> ".join([*trail, package])
        if package not in done:
            for used in sorted(graph.get(package, ())):
                visit(used, (*trail, package))
            done.add(package)

    for package in sorted(graph):
        visit(package, ())


def test_only_distributed_speaks_to_other_processes():
    files = [path for path in python_files("src") if path != SRC / "train" / "distributed.py"]
    refuse([place(p) for p in files if "torch.distributed" in p.read_text(encoding="utf-8")])


def test_files_and_functions_stay_small():
    found = []
    for path in python_files("src", "tests", "tools", "bench"):
        length = len(path.read_text(encoding="utf-8").splitlines())
        if length > MAX_LINES:
            found.append(f"{place(path)}: {length} lines")
        for node in nodes(path, ast.FunctionDef, ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            if length > MAX_FUNCTION:
                found.append(f"{place(path, node)}: {node.name} has {length} lines")
    refuse(found)


def test_streams_of_random_values_are_named_by_one_file_only():
    """Two purposes that drew under one name would get the same values."""
    users: dict[tuple[str, str], set[str]] = defaultdict(set)
    for path in python_files("src"):
        for node in nodes(path, ast.Call):
            named = node.args and isinstance(node.args[0], ast.Constant | ast.JoinedStr)
            if isinstance(node.func, ast.Attribute) and node.func.attr in STREAMS and named:
                text = ast.unparse(node.args[0])
                if "'" in text or '"' in text:
                    users[node.func.attr, text].add(place(path))
    assert users
    refuse([f"{name}: {sorted(files)}" for name, files in users.items() if len(files) > 1])


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import fewstep", ["torch", "diffusers", "transformers", "numpy", "pydantic"]),
        ("import fewstep.cli", ["torch", "diffusers", "transformers", "scipy"]),
    ],
)
def test_importing_is_quick(statement: str, absent: list[str]):
    code = f"import sys; {statement}; print([m for m in {absent!r} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]", f"{statement} loads {run.stdout.strip()}"


# ------------------------------------------------------------------------------ the tests


def private(name: object) -> bool:
    return isinstance(name, str) and name.startswith("_") and not name.endswith("__")


def private_names(path: Path) -> Iterator[str]:
    """Where a test looks at a name that begins with an underscore and is not its own."""
    for node in nodes(path, ast.Attribute, ast.ImportFrom, ast.Call):
        if isinstance(node, ast.Attribute):
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            names = [] if own else [node.attr]
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
        else:
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            reflects = called in ("getattr", "setattr", "hasattr", "delattr")
            names = [a.value for a in node.args[1:2] if reflects and isinstance(a, ast.Constant)]
        yield from (f"{place(path, node)}: {name}" for name in names if private(name))


def wording(path: Path) -> Iterator[str]:
    """Where a test asserts what a message says; its code, or tests/data/messages.txt, is for that.

    That a message is one line, or ends in a command that can be parsed, is no wording.
    """
    for node in nodes(path, ast.Call, ast.Compare):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("raises", "warns"):
            if any(keyword.arg == "match" for keyword in node.keywords):
                yield f"{place(path, node)}: match="
        elif isinstance(node, ast.Compare):
            left, right = ast.unparse(node.left), ast.unparse(node.comparators[0])
            if right.startswith("str(") and right.endswith(".value)") and left != "'\\n'":
                yield f"{place(path, node)}: {left} in {right}"


def test_tests_look_at_public_names():
    refuse([line for path in python_files("tests") for line in private_names(path)])


def test_tests_assert_codes_and_not_wording():
    refuse([line for path in python_files("tests") for line in wording(path)])


def test_tests_use_the_real_parts():
    refuse(
        [
            place(path, node)
            for path in python_files("tests")
            for node in nodes(path, ast.Import, ast.ImportFrom)
            if "unittest" in ast.unparse(node)
        ]
    )
