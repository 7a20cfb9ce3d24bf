"""The table of wrong inputs: a case, the rules that it is held to, and a run of many.

See the package's docstring for how to add cases.
"""

from __future__ import annotations

import atexit
import importlib
import json
import pkgutil
import re
import shutil
import sys
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from faults import wrong
from faults.entry import Entry, Result

RECIPE = str(Path(__file__).with_name("recipe.yaml"))
"""A run of two iterations with LoRA on the embedded pipeline, a second from end to end."""
PIPELINE = "package://fewstep.toyworld/data/pipeline"
"""The embedded pipeline."""
RUN = "{RUN}"
"""In a case's words: a finished run of `RECIPE`, shared: not to be changed; see `copy_of_run`."""


@dataclass(frozen=True)
class Case:
    """One wrong input.

    Attributes:
        name: What is wrong, unique within its area.
        argv: The words after ``fewstep``, or a function that makes them from the case's folder.
        setup: Puts into the case's empty folder what it needs.
        names: Texts that the line of a refused case must hold: the file or key, the cure.
        check: Asserts that the result of an accepted case is right; None: the case is refused.
        timeout: Seconds from which it counts as hanging.
        peak_gb: Bound on the resident memory, GB; imports alone take 0.7.
    """

    name: str
    argv: Sequence[str] | Callable[[Path], Sequence[str]]
    setup: Callable[[Path], object] | None = None
    names: tuple[str, ...] = ()
    check: Callable[[Result], object] | None = None
    timeout: float = 30
    peak_gb: float = 3


def areas() -> dict[str, list[Case]]:
    """All cases, by area."""
    return {area: cases_of(area) for area in area_names()}


def area_names() -> list[str]:
    """Names of the areas, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(wrong.__path__))


def cases_of(area: str) -> list[Case]:
    """All cases of one area."""
    return list(importlib.import_module(f"faults.wrong.{area}").cases())


def some_of(cases: Sequence[Case], count: int) -> list[Case]:
    """A few of them, evenly spread."""
    return [cases[number * len(cases) // count] for number in range(min(count, len(cases)))]


def run(case: Case) -> tuple[Result, list[str]]:
    """Runs a case; returns how it ended and which rules that breaks."""
    folder = Path(tempfile.mkdtemp(prefix="case-", dir=_home()))
    if case.setup is not None:
        case.setup(folder)
    argv = case.argv(folder) if callable(case.argv) else case.argv
    if any(RUN in word for word in argv):
        argv = [word.replace(RUN, str(run_folder())) for word in argv]
    before = _listing(folder)
    result = _entry().run(argv, folder, timeout=case.timeout)
    broken = list(_broken(case, result, _changed(before, _listing(folder)), "--json" in argv))
    shutil.rmtree(folder, ignore_errors=True)
    return result, broken


def run_all(cases: Iterable[Case]) -> tuple[Counter[str], list[str]]:
    """Runs cases; returns how many ended how, and a line for each rule that one breaks."""
    counts: Counter[str] = Counter()
    offenders = []
    for case in cases:
        result, broken = run(case)
        counts[result.outcome] += 1
        offenders += [f"{case.name}: {what}" for what in broken]
    return counts, offenders


@cache
def run_folder(steps: int = 2) -> Path:
    """A finished run of `RECIPE`, of as many steps."""
    folder = _home() / ("run" if steps == 2 else f"run-{steps}")
    words = ["distill", RECIPE, "--out", str(folder), "--set", f"train.steps={steps}"]
    result = _entry().run(words, _home())
    assert result.code == 0, result.err
    return folder


def copy_of_run(folder: Path, name: str = "run") -> Path:
    """A copy of the finished run in a case's folder, to be damaged there."""
    return Path(shutil.copytree(run_folder(), folder / name))


@cache
def exported_folder() -> Path:
    """The adapter of the finished run, exported."""
    folder = _home() / "lora"
    result = _entry().run(["export", str(run_folder()), "--out", str(folder)], _home())
    assert result.code == 0, result.err
    return folder


@cache
def pipeline_folder() -> Path:
    """The embedded pipeline's folder."""
    from fewstep.utils.resources import resolve

    return resolve(PIPELINE)


def copy_of_pipeline(folder: Path, name: str = "model") -> Path:
    """A copy of the embedded pipeline in a case's folder, to be damaged there."""
    return Path(shutil.copytree(pipeline_folder(), folder / name))


def odd_characters(text: str) -> set[str]:
    """Characters that a terminal acts on or that reorder a line."""
    return {
        character
        for character in text
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
        or character in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    }


def _broken(case: Case, result: Result, changed: list[str], as_json: bool) -> Iterator[str]:
    """The rules that a result breaks."""
    wanted = "refused" if case.check is None else "accepted"
    if result.outcome != wanted:
        yield f"{result.outcome}, not {wanted}: {result.err[-600:]!r}"
        return
    if result.peak_gb > case.peak_gb:
        yield f"takes {result.peak_gb:.1f} GB"
    if case.check is not None:
        try:
            case.check(result)
        except AssertionError as error:
            yield f"wrong result: {str(error) or 'see its check'}"
        return
    lines = result.err.split("\n")
    if len(lines) != 2 or not lines[0].strip() or lines[1]:
        yield f"not one line: {result.err[:600]!r}"
    if odd := odd_characters(lines[0]):
        yield f"control characters {odd}"
    yield from (f"no {name!r} in {lines[0]!r}" for name in case.names if name not in lines[0])
    if changed:
        yield f"changed {changed}"
    if as_json and json.loads(result.out)["error"]["message"] != lines[0]:
        yield f"stdout tells something else: {result.out[:300]!r}"
    if not as_json and result.out:
        yield f"stdout holds {result.out[:300]!r}"


def _listing(folder: Path) -> dict[str, tuple[int, int]]:
    """What lies in a folder: name -> bytes, time of change."""
    found = {}
    for path in folder.rglob("*"):
        state = path.lstat()
        is_folder = path.is_dir() and not path.is_symlink()
        now = (0, 0) if is_folder else (state.st_size, state.st_mtime_ns)
        found[str(path.relative_to(folder))] = now
    return found


def _changed(before: dict, after: dict) -> list[str]:
    return sorted(name for name in {*before, *after} if before.get(name) != after.get(name))


@cache
def _home() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="fewstep-faults-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def _entry() -> Entry:
    entry = Entry(_home())
    atexit.register(entry.close)
    return entry


def main(area: str = "", words: str = "") -> int:
    """Runs the cases of all areas or one, and prints those that break a rule."""
    broken_any = False
    for name in [area] if area else area_names():
        counts: Counter[str] = Counter()
        for case in cases_of(name):
            if not re.search(words, case.name):
                continue
            result, broken = run(case)
            counts[result.outcome] += 1
            if broken or words:
                told = "; ".join(broken) or f"{result.outcome}: {result.err.strip()}"
                sys.stdout.write(f"{case.name} ({result.seconds:.1f} s): {told}\n")
                sys.stdout.flush()
            broken_any |= bool(broken)
        sys.stdout.write(f"{name}: {counts.total()} cases: {dict(counts)}\n")
    return int(broken_any)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
