"""The model card: metadata that the hub takes, pictures that exist, figures and their source."""

from __future__ import annotations

import pytest
from huggingface_hub import ModelCard, ModelCardData
from PIL import Image

from exported import card_of, metadata_of
from fewstep.inference.load import export_model
from fewstep.utils.files import write_json

TERMS = {"license": "other", "license_name": "house-terms", "license_link": "https://x.org/terms"}
HOME = "/".join(["", "home", "alice"])
KINDS = {"full": "diffusers", "lora": "lora", "comfyui": "comfyui"}


def with_pictures(run):
    """A run whose checkpoint was evaluated, and drawn."""
    files = [f"evaluation/student-4/{number:03}.png" for number in range(2)]
    for number, file in enumerate(files):
        (run / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(run / file)
    write_json(run / "evaluation" / "gallery.json", {"prompts": ["a ring", "a | cross"]})
    row = {"name": "student@4", "evaluations": 4, "figures": {"sharpness": 0.875}}
    write_json(
        run / "evaluation.json",
        {
            "step": 2,
            "seed": 71,
            "dtype": "bfloat16",
            "prompts": {"file": f"{HOME}/held-out.txt", "count": 512},
            "metrics": [{"name": "sharpness", "licence": "MIT"}],
            "hardware": {"accelerator": "A card", "cpu": "a processor"},
            "columns": {"sharpness": {"label": "sharpness", "group": ""}},
            "configurations": [row | {"gallery": files}],
        },
    )
    return run


@pytest.mark.parametrize("kind", KINDS)
def test_the_hub_takes_the_metadata(make_run, kind):
    card = {"base_model": "owner/name", **TERMS}
    run = with_pictures(make_run("full" if kind == "full" else "lora", card=card))
    exported = export_model(run, format=KINDS[kind])
    data = metadata_of(exported)
    assert ModelCardData(**data).to_dict() == data
    assert ModelCard(card_of(exported)).data.to_dict() == data
    assert data["base_model"] == "owner/name"
    assert data["base_model_relation"] == ("finetune" if kind == "full" else "adapter")
    assert {key: data[key] for key in TERMS} == TERMS
    assert [each["text"] for each in data["widget"]] == ["a ring", "a | cross"]
    for number, each in enumerate(data["widget"]):
        with Image.open(exported / each["output"]["url"]) as picture:
            assert picture.getpixel((0, 0)) == (number, 0, 0)


def test_a_card_says_how_its_figures_were_measured(make_run):
    card = card_of(export_model(with_pictures(make_run("lora"))))
    for fact in ("0.875", "512", "seed: 71", "sharpness", "bfloat16", "A card"):
        assert fact in card
    assert HOME not in card and "<details>" in card


def test_pictures_are_cut_out_of_the_preview_where_nothing_was_evaluated(make_run):
    run = make_run("lora")
    (run / "previews").mkdir()
    sheet = Image.new("RGB", (2 * 66, 3 * 66), "white")
    for row in range(3):
        sheet.paste((row, 1, 0), (0, 66 * row, 64, 66 * row + 64))  # the teacher's
        sheet.paste((row, 2, 0), (66, 66 * row, 66 + 64, 66 * row + 64))
    sheet.save(run / "previews" / "step-00000002.png")
    note = {"columns": ["teacher, 50 steps", "student, 4 steps"], "rows": ["a", "b", "c"]}
    write_json(run / "previews" / "previews.json", note)
    exported = export_model(run)
    widget = metadata_of(exported)["widget"]
    assert [each["text"] for each in widget] == ["a", "b", "c"]
    for row, each in enumerate(widget):
        with Image.open(exported / each["output"]["url"]) as picture:
            assert picture.size == (64, 64)
            assert picture.getcolors() == [(64 * 64, (row, 2, 0))]


def test_a_card_has_both_ways_to_draw(make_run):
    for format in ("lora", "comfyui"):
        card = card_of(export_model(make_run("lora"), format=format))
        assert "load_lora_weights" in card and "workflow_api.json" in card
        assert "sigmas=[1.0, 0.75, 0.5, 0.25]" in card and "1, 0.9, 0.75, 0.5, 0" in card
