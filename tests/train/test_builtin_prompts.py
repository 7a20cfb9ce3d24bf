"""The prompts that come with the project, and what is shown of any prompts before training."""

from __future__ import annotations

from collections import Counter

from fewstep.config import Recipe, missing_files
from fewstep.data.prompts import normalized, read_prompts
from refusals import names_in, refuses


def test_the_built_in_prompts_are_many_varied_and_always_the_same():
    general, heldout = (read_prompts(f"builtin:{name}") for name in ("general", "general-heldout"))
    for prompts, least in ((general, 4000), (heldout, 500)):
        assert len(prompts.texts) >= least
        assert prompts.duplicates == prompts.empty == prompts.undecodable == 0
        assert not [
            text for text in prompts.texts if text != normalized(text) or set("{}") & set(text)
        ]
    assert not set(general.texts) & set(heldout.texts)
    assert general.digest.startswith("06ea745c037ec7d7"), "runs on them cannot be resumed any more"
    lengths = sorted(len(text.split()) for text in general.texts)
    assert lengths[0] <= 2 and lengths[-1] >= 40
    starts = Counter(" ".join(text.split()[:3]) for text in general.texts)
    assert len(starts) > 500 and max(starts.values()) < len(general.texts) / 20


def test_a_built_in_list_is_a_source_of_a_recipe():
    recipe = Recipe.named("sd3-medium-lora", {"data.prompts": "builtin:general"})
    assert missing_files(recipe) == {}
    with refuses("unknown-name") as caught:
        read_prompts("builtin:genral")
    assert "general" in names_in(caught.value)


def test_the_distribution_of_prompts_is_shown():
    shown = names_in(
        read_prompts(["a red cat", "a cat", "the cat sat down", "猫", "🐈"]).distribution()
    )
    assert {"cat", "60%", "1", "4", "16", "characters"} <= shown and "the" not in shown
    assert read_prompts(["🐈"]).distribution()
