"""Paths resolve on disk or inside an installed package."""

from __future__ import annotations

from pathlib import Path

import pytest

import fewstep.objectives
from fewstep.utils.errors import FewstepError
from fewstep.utils.resources import resolve


def test_package_paths_lie_inside_the_package():
    found = resolve("package://fewstep.objectives/isg.py")
    assert found == Path(fewstep.objectives.__file__).parent / "isg.py"
    assert found.is_file()


def test_other_paths_stay_as_they_are(tmp_path):
    assert resolve(tmp_path / "model") == tmp_path / "model"
    assert resolve("runs/demo") == Path("runs/demo")


def test_home_is_understood():
    assert resolve("~/model") == Path.home() / "model"


@pytest.mark.parametrize("path", ["package://no_such_package/data", "package:///data"])
def test_a_missing_package_is_named(path):
    with pytest.raises(FewstepError) as refused:
        resolve(path)
    assert refused.value.code == "missing-dependency"
