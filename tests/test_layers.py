"""The house stands: imports go down only, rooms stay small, names of machines stay out."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src" / "fewstep"
MODULES = sorted(SRC.rglob("*.py"))
LEVELS = {
    0: "utils",
    1: "core",
    2: "models config",
    3: "objectives data",
    4: "train",
    5: "inference planning",
    6: "evaluation export",
    7: "report",
    8: "toyworld recipes",
    9: "cli __main__",
}
LEVEL_OF = {room: level for level, rooms in LEVELS.items() for room in rooms.split()}
MAX_LINES, MAX_FUNCTION = 400, 60


def room_of(path: Path) -> str:
    """First name below ``fewstep``: ``train`` for train/step.py, ``flow`` for flow.py."""
    first = path.relative_to(SRC).parts[0]
    return first.removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Full names of the fewstep modules and names that a file imports, at any depth."""
    names: set[str] = set()
    package = ["fewstep", *path.relative_to(SRC).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] == "fewstep"}


def rooms_used(path: Path) -> set[str]:
    """The rooms (below ``fewstep``) that a file imports from."""
    used = {name.split(".")[1] for name in imported(path) if "." in name}
    return used - {"__version__"}


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_room_has_a_level():
    rooms = {room_of(path) for path in MODULES} - {"__init__"}
    assert rooms <= set(LEVEL_OF), f"say at which level these stand: {rooms - set(LEVEL_OF)}"


@pytest.mark.parametrize("path", MODULES, ids=short)
def test_imports_go_down_only(path: Path):
    room = room_of(path)
    for used in rooms_used(path) - ({"toyworld"} if room == "evaluation" else set()):
        assert used in LEVEL_OF, f"{short(path)} imports unknown fewstep.{used}"
        assert room != "__init__", "fewstep/__init__.py imports nothing of the package"
        assert LEVEL_OF[used] <= LEVEL_OF[room], f"{short(path)} imports upwards: fewstep.{used}"


def test_rooms_of_one_level_form_no_circle():
    graph: dict[str, set[str]] = {}
    for path in MODULES:
        graph.setdefault(room_of(path), set()).update(rooms_used(path) - {room_of(path)})
    done: set[str] = set()

    def visit(room: str, trail: tuple[str, ...]) -> None:
        assert room not in trail, " -> ".join([*trail, room])
        if room not in done:
            for used in sorted(graph.get(room, ())):
                visit(used, (*trail, room))
            done.add(room)

    for room in sorted(graph):
        visit(room, ())


def test_the_method_knows_nothing_of_the_tiny_world():
    allowed = {"toyworld", "evaluation", "cli"}
    users = {short(p) for p in MODULES if "toyworld" in rooms_used(p) and room_of(p) not in allowed}
    assert not users, f"only evaluation and the command line may import fewstep.toyworld: {users}"


def test_only_parallel_speaks_to_other_processes():
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        assert "torch.distributed" not in text or path.name == "distributed.py", short(path)


@pytest.mark.parametrize(
    "path",
    [*MODULES, *sorted(p for d in ("tests", "tools", "bench") for p in (ROOT / d).rglob("*.py"))],
    ids=short,
)
def test_rooms_stay_small(path: Path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_LINES, f"{short(path)} is longer than {MAX_LINES} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= MAX_FUNCTION, f"{short(path)}: {node.name} has {lines} lines"


def is_public(path: Path) -> bool:
    parts = path.relative_to(SRC).with_suffix("").parts
    return not any(part.startswith("_") and part != "__init__" for part in parts)


@pytest.mark.parametrize("path", [p for p in MODULES if is_public(p)], ids=short)
def test_public_names_are_documented(path: Path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if path.name != "__init__.py" or tree.body:
        assert ast.get_docstring(tree), f"{short(path)} has no docstring"
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    owners = [tree, *(each for each in classes if not each.name.startswith("_"))]
    for owner in owners:
        for node in owner.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{short(path)}: {node.name} has no docstring"


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
