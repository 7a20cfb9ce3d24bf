"""The table of models, and the recipes that ship for them."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import diffusers
import pytest

from fewstep import cli, models
from fewstep.config import Recipe, shipped
from fewstep.models import shipped_configs
from fewstep.objectives import build_all, refuse_unsupported
from fewstep.planning import dry_run

EXPECTED = {
    "SD3-Medium",
    "SD3.5-Medium",
    "SD3.5-Large",
    "LongCat-Image",
    "SANA 0.6B",
    "SANA 1.6B",
    "PixArt-Sigma",
    "FLUX.1-dev",
    "SDXL",
    "SD 1.5",
    "FLUX.2-dev",
    "FLUX.2-klein base 4B",
    "Qwen-Image",
    "Z-Image",
    "Lumina2",
    "AuraFlow",
    "Wan 2.1 T2V 1.3B",
}
REAL = [name for name in shipped.available() if not name.startswith("demo")]


def answer(arguments, capsys):
    capsys.readouterr()
    assert cli.run([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_published_model_is_listed(capsys):
    content = answer(["models"], capsys)
    rows = {row["model"]: row for row in content["models"]}
    assert set(rows) >= EXPECTED
    for row in rows.values():
        assert hasattr(diffusers, row["class"])
        assert row["prediction"] in ("velocity", "eps", "v")
        assert row["guidance"] in ("cfg", "embedded")
        assert row["status"] in ("settings published", "untested at full size")
        assert row["shift"] and row["encoders"] and row["repo"]
        assert re.fullmatch(r"[\d.]+ B", row["parameters"])
    told = {row["model"] for row in rows.values() if row["status"] == "settings published"}
    assert told >= {"SD3-Medium", "LongCat-Image"}


def test_the_refused_are_listed_with_what_to_use(capsys):
    rows = answer(["models"], capsys)["refused"]
    names = {row["model"] for row in rows}
    assert names >= {"FLUX.1-schnell", "SD-Turbo", "SDXL-Turbo", "SD3.5-Large-Turbo"}
    assert names >= {"Z-Image-Turbo", "Sana-Sprint", "FLUX.2-klein-4B"}
    assert all(row["reason"] and row["instead"] for row in rows)


def test_the_table_for_people_has_both(capsys):
    assert cli.run(["models"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in (*EXPECTED, "FLUX.1-schnell", "flux.1-dev-lora"))


def test_what_is_refused_is_not_offered():
    offered = {each.repo for family in models.available() for each in family.models}
    refused = {each.repo for each in models.REFUSED}
    assert not offered & refused
    assert {each.instead for each in models.REFUSED} <= offered


def test_every_model_of_the_table_can_be_planned_without_the_hub():
    assert {each.repo for family in models.available() for each in family.models} <= set(
        shipped_configs.available()
    )


def test_every_family_has_a_recipe(capsys):
    rows = answer(["models"], capsys)["models"]
    served = {row["class"] for row in rows if row["recipes"]}
    assert served == {row["class"] for row in rows}


LISTED = {each.repo: each for family in models.available() for each in family.models}
WALKED = {Recipe.named(name).model.path for name in REAL}


@pytest.mark.parametrize("repo", sorted(set(shipped_configs.available()) - WALKED))
def test_sizes_without_a_recipe_are_as_listed(repo):
    backbone = models.load_meta(repo)
    found = sum(parameter.numel() for parameter in backbone.net.parameters())
    assert found / 1e9 == pytest.approx(LISTED[repo].parameters, rel=0.02)
    assert all(parameter.is_meta for parameter in backbone.net.parameters())


@pytest.mark.parametrize("name", REAL)
def test_every_recipe_can_be_walked_through(name):
    recipe = Recipe.named(name)
    found = dry_run(recipe, walk=False)
    refuse_unsupported(build_all(recipe), _guidance(found.family), found.family)
    few, anchors = found.few_step, found.anchors
    assert few[-1] == 0 and all(a > b for a, b in pairwise(few))
    assert few[0] >= anchors[0] > anchors[1] > 0
    assert found.parameters.network / 1e9 == pytest.approx(
        LISTED[recipe.model.path].parameters, rel=0.02
    )
    assert 0 < found.parameters.trained <= found.parameters.network
    assert found.evaluations.total > found.evaluations.backward > 1
    assert f"fewstep distill {name}" in shipped.find(name).read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_memory_is_as_the_recipe_says(name):
    found = dry_run(Recipe.named(name))
    text = shipped.find(name).read_text(encoding="utf-8")
    if counted := re.search(r"Memory: about (\d+) GB", text):
        assert float(counted[1]) == pytest.approx(found.peak_bytes / 1e9, rel=0.1, abs=1)


def _guidance(family):
    return next(each.guidance for each in models.available() if each.name == family)
