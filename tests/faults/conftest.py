"""A recipe and finished runs of it, made once."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from faults import processes, runs


@pytest.fixture(scope="session")
def recipe(tmp_path_factory) -> Path:
    """See `runs.make_recipe`."""
    return runs.make_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="session")
def finished(recipe, tmp_path_factory):
    """``finished("student=...", ranks=2)``: folder of a run that nothing happened to."""

    @cache
    def get(*overrides: str, ranks: int = 1) -> Path:
        folder = tmp_path_factory.mktemp("finished")
        words = runs.distill(recipe, folder / "run", *overrides)
        for each in processes.start_job(words, folder / "log", ranks=ranks):
            assert each.wait() == 0, each.said()
        return folder / "run"

    return get
