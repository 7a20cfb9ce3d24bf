"""Exports: plain diffusers loads them, and the card's snippet draws what `fewstep sample` draws."""

from __future__ import annotations

import ast
import json
import re
import shutil

import numpy as np
import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    StableDiffusion3Pipeline,
    UniPCMultistepScheduler,
)
from PIL import Image
from safetensors.torch import load_file

from exported import PROMPT, card_of, metadata_of, pixels_of_sample, run_snippets, sample
from fewstep.config import Recipe
from fewstep.core.schedules import few_step_sigmas
from fewstep.export import available
from fewstep.inference.load import export_model, open_model
from fewstep.inference.sample import sample_images
from fewstep.models.lora import LORA_WEIGHTS
from fewstep.models.shift import FlowSettings
from fewstep.utils.errors import FewstepError
from fewstep.utils.files import write_json
from plugin import make_plugin
from refusals import refuses


@pytest.mark.slow
def test_the_snippet_draws_what_sample_draws(make_run, pipeline_folder, tmp_path):
    moved = {"name": "fixed", "shift": 1.5}
    runs = [make_run(), make_run("lora"), make_run(grid=moved), make_run("lora", grid=moved)]
    exports = [export_model(run) for run in runs]
    assert exports == [run / "export" for run in runs]
    drawn = list(run_snippets(*exports, beside=[pipeline_folder]))
    for run, exported, expected in zip(runs, exports, drawn, strict=True):
        assert np.array_equal(expected, pixels_of_sample(run, tmp_path))
        assert np.array_equal(expected, pixels_of_sample(run, tmp_path, which="best"))
        assert np.array_equal(expected, pixels_of_sample(exported, tmp_path))
        assert not np.array_equal(expected, pixels_of_sample(run, tmp_path, which="last"))


def test_a_full_export_is_a_whole_diffusers_folder(make_run, pipeline_folder):
    exported = export_model(make_run())
    pipe = StableDiffusion3Pipeline.from_pretrained(exported)
    teacher = StableDiffusion3Pipeline.from_pretrained(pipeline_folder)
    assert pipe.scheduler.config == teacher.scheduler.config
    ours, theirs = pipe.transformer.state_dict(), teacher.transformer.state_dict()
    assert ours.keys() == theirs.keys()
    assert not torch.equal(ours["proj_out.weight"], theirs["proj_out.weight"])


@pytest.mark.parametrize("alpha", [None, 8.0])
def test_an_adapter_is_right_at_scale_one(make_run, alpha):
    run = make_run("lora", student={"mode": "lora", "lora": {"rank": 2, "alpha": alpha}})
    exported = export_model(run)
    assert (exported / LORA_WEIGHTS).is_file() and not (exported / "model_index.json").exists()
    by_adapter = open_model(exported)
    whole = open_model(export_model(run, run.parent / "whole", merge=True))
    from_checkpoint = open_model(run, which="best")
    one, two, three = map(sample, (by_adapter, whole, from_checkpoint))
    assert torch.equal(one, three)
    assert torch.allclose(one, two, atol=1e-4)
    # The trainer's own arithmetic, alpha / rank times B A, is what scale 1 has to mean.
    teacher = open_model(run.parent / "whole").backbone
    assert teacher.name == "sd3" and not torch.allclose(
        one, sample_images(*_pretrained(run), [PROMPT]), atol=1e-3
    )


def _pretrained(run):
    model = open_model(Recipe.from_file(run / "config.yaml").model.path)
    model.backbone.max_sequence_length = 16
    return model.backbone, model.net


def test_the_trainers_student_is_the_exported_adapter(make_run, pipeline_folder):
    from fewstep import models
    from fewstep.config import Recipe
    from fewstep.train.checkpoint import store
    from fewstep.train.roles import Roles, load_parameters

    run = make_run("lora", student={"mode": "lora", "lora": {"rank": 2, "alpha": 5.0}})
    backbone = models.load(pipeline_folder, max_sequence_length=16)
    roles = Roles.build(backbone, Recipe.from_file(run / "config.yaml").student, seed=0)
    weights = store.student_weights(store.find(run, "best"))
    load_parameters(roles.parameters("student"), weights)
    cond = backbone.encode([PROMPT])
    xt, sigma = torch.randn(1, 16, 8, 8), torch.tensor([0.7])
    exported = open_model(export_model(run))
    theirs = exported.backbone.velocity(exported.net, xt, sigma, cond)
    assert torch.allclose(roles.student(xt, sigma, cond), theirs, atol=1e-5)


def test_the_card_states_what_a_user_needs(make_run, pipeline_folder):
    run = make_run()
    write_json(run / "evaluation.json", _evaluation(step=2))
    (run / "previews").mkdir()
    Image.new("RGB", (8, 8)).save(run / "previews" / "step-00000002.png")
    card = card_of(export_model(run))
    assert "sigmas=[1.0, 0.75, 0.5, 0.25]" in card and "[1.0, 0.9, 0.75, 0.5]" in card
    assert "guidance_scale=1.0" in card and "Guidance off" in card
    assert "0.875" in card and "images/preview.png" in card
    assert "name: cdm" in card and str(pipeline_folder.parent) not in card.split("## Recipe")[0]
    assert (run / "export" / "images" / "preview.png").is_file()


def test_the_card_states_a_grid_of_the_students_own(make_run):
    exported = export_model(make_run(grid={"name": "random", "shift": 1.5}))
    card = card_of(exported)
    assert "[1.0, 0.818182, 0.6, 0.333333]" in card and "sigmas=[1.0, 0.75, 0.5, 0.25]" in card
    formula = re.search(r"for other counts n pass `sigmas=(.*)`", card)[1]
    for n in (1, 4, 7):
        assert eval(formula, {"n": n}) == pytest.approx(few_step_sigmas(n))
    scheduler = StableDiffusion3Pipeline.from_pretrained(exported).scheduler
    assert scheduler.config.shift == 1.5 and not scheduler.config.use_dynamic_shifting


@pytest.mark.parametrize(
    "prompt", ['a "red" circle', "it's red", "```\nimport os\n```", "\\ \u202e"]
)
def test_the_snippet_holds_any_prompt(make_run, prompt):
    card = card_of(export_model(make_run(preview={"prompts": [prompt]})))
    code = re.search(r"```python\n(.*?)\n```\n", card, re.DOTALL)[1]
    called = next(
        node
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "pipe"
    )
    given = {keyword.arg: keyword.value for keyword in called.keywords}
    assert ast.literal_eval(given["prompt"]) == prompt


def test_scores_of_another_checkpoint_stay_off_the_card(make_run):
    run = make_run()
    write_json(run / "evaluation.json", _evaluation(step=4))
    assert "0.875" not in card_of(export_model(run))


def _evaluation(step):
    row = {"name": "student@4", "evaluations": 4, "seconds_per_image": 0.1}
    row["figures"] = {"sharpness": 0.875}
    column = {"label": "sharpness", "higher_is_better": True, "percent": False, "group": ""}
    return {"step": step, "configurations": [row], "columns": {"sharpness": column}}


def test_the_licence_is_the_teachers_else_the_recipes_else_other(make_run, pipeline_folder):
    plain = metadata_of(export_model(make_run()))
    assert plain["license"] == "other" and plain["library_name"] == "diffusers"
    assert plain["pipeline_tag"] == "text-to-image" and "base_model" not in plain
    named = make_run(card={"license": "mit", "base_model": "owner/name"})
    assert metadata_of(export_model(named))["license"] == "mit"
    assert metadata_of(export_model(named))["base_model"] == "owner/name"
    card = pipeline_folder / "README.md"
    card.write_text(
        "---\nlicense: openrail\nlicense_link: LICENSE.md\n---\n# x\n", encoding="utf-8"
    )
    (pipeline_folder / "LICENSE.md").write_text("terms", encoding="utf-8")
    try:
        exported = export_model(named)
        theirs = metadata_of(exported)
        (pipeline_folder / "LICENSE.md").unlink()
        elsewhere = metadata_of(export_model(named))
    finally:
        card.unlink()
    assert (theirs["license"], theirs["license_link"]) == ("openrail", "LICENSE.md")
    assert (exported / "LICENSE.md").exists() is False  # it went with the second export
    assert elsewhere["license_link"] == "https://huggingface.co/owner/name/blob/main/LICENSE.md"


FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 2.5}
SCHEDULERS = [
    (FlowMatchEulerDiscreteScheduler, {"use_dynamic_shifting": True, "time_shift_type": "linear"}),
    (FlowMatchEulerDiscreteScheduler, {"shift": 2.0, "shift_terminal": 0.05}),
    (FlowMatchHeunDiscreteScheduler, {"shift": 2.0}),
    (UniPCMultistepScheduler, {**FLOW, "shift_terminal": 0.1}),
]
OTHER_SETTINGS = {  # at their defaults
    *("num_train_timesteps", "invert_sigmas", "stochastic_sampling"),
    *("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"),
}


@pytest.mark.slow
def test_the_snippet_draws_what_sample_draws_for_every_scheduler(
    make_run, pipeline_folder, tmp_path
):
    exports = []
    for number, (kind, settings) in enumerate(SCHEDULERS):
        source = tmp_path / f"model{number}"
        shutil.copytree(pipeline_folder, source)
        kind(**settings).save_pretrained(source / "scheduler")
        index = json.loads((source / "model_index.json").read_text())
        index["scheduler"] = ["diffusers", kind.__name__]
        (source / "model_index.json").write_text(json.dumps(index))
        model = {"path": str(source), "options": {"max_sequence_length": 16}}
        for mode, terminal in (("full", "model"), ("lora", None if number % 2 else "model")):
            grid = {"name": "random", "terminal": terminal}
            exports.append(export_model(make_run(mode, model=model, grid=grid)))
    for number, (exported, expected) in enumerate(
        zip(exports, run_snippets(*exports, beside=list(tmp_path.glob("model*"))), strict=True)
    ):
        which = "best" if number % 3 else None  # from the checkpoint, and from the export
        assert np.array_equal(expected, pixels_of_sample(exported.parent, tmp_path, which=which))
    for exported in exports[::2]:
        scheduler = StableDiffusion3Pipeline.from_pretrained(exported).scheduler
        assert type(scheduler) is FlowMatchEulerDiscreteScheduler
        settings = {key for key in scheduler.config if not key.startswith("_")}
        assert settings == set(FlowSettings.model_fields) | OTHER_SETTINGS


PLUGIN = """
from safetensors.torch import save_file

from fewstep.export import Format


class Weights(Format):
    name = "weights"
    modes = ("full",)
    families = ("sd3",)

    def write(self, student, folder):
        save_file(student.net.state_dict(), folder / "weights.safetensors")

    def usage(self, student, address):
        return f"Load `{address}/weights.safetensors`; {len(student.base_sigmas)} steps."


class Failing(Format):
    name = "failing"

    def write(self, student, folder):
        (folder / "half").write_text("written")
        raise OSError("disk full")

    def usage(self, student, address):
        return ""


class Elsewhere(Weights):
    name = "elsewhere"
    families = ("flux",)
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """An installed package that adds three export formats."""
    names = {"weights": "Weights", "failing": "Failing", "elsewhere": "Elsewhere"}
    points = {name: f"fewstep_test_formats:{cls}" for name, cls in names.items()}
    folder = make_plugin(
        tmp_path_factory.mktemp("plugin"),
        {"fewstep.formats": points},
        {"fewstep_test_formats.py": PLUGIN},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield


def test_a_format_of_another_package_is_used_by_name(plugin, make_run, tmp_path):
    assert {"weights", "diffusers", "lora"} <= set(available())
    run = make_run()
    out = export_model(run, tmp_path / "out", format="weights")
    student = open_model(run, which="best")
    weights = load_file(out / "weights.safetensors")
    assert all(torch.equal(weights[k], v) for k, v in student.net.state_dict().items())
    assert "`./weights.safetensors`; 4 steps" in card_of(out)
    assert json.loads((out / "fewstep.json").read_text())["format"] == "weights"


def test_a_run_is_opened_past_an_export_that_only_others_read(plugin, make_run):
    run = make_run()
    export_model(run, format="weights")
    assert torch.equal(*(sample(open_model(run, which=which)) for which in (None, "best")))


@pytest.mark.parametrize(
    ("mode", "format", "merge", "code"),
    [
        ("lora", "weights", False, "unsupported"),  # a mode that it does not hold
        ("full", "elsewhere", False, "unsupported"),  # a family that it does not serve
        ("full", "lora", False, "unsupported"),
        ("lora", "lora", True, "mismatch"),
        ("full", "wieghts", False, "unknown-name"),
    ],
)
def test_a_format_that_does_not_fit_is_refused(
    plugin, make_run, tmp_path, mode, format, merge, code
):
    with pytest.raises(FewstepError) as caught:
        export_model(make_run(mode), tmp_path / "out", format=format, merge=merge)
    assert caught.value.code == code
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_leaves_nothing(plugin, make_run, tmp_path):
    with pytest.raises(OSError):
        export_model(make_run(), tmp_path / "out", format="failing")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("which", ["an empty folder", "a pretrained pipeline"])
def test_what_was_not_distilled_is_refused(which, pipeline_folder, tmp_path):
    place = tmp_path if which == "an empty folder" else pipeline_folder
    with pytest.raises(FewstepError) as caught:
        export_model(place, tmp_path / "out")
    assert caught.value.code == "missing-file" and not (tmp_path / "out").exists()


def test_an_export_is_exported_again(make_run, pipeline_folder, tmp_path):
    adapter = export_model(make_run("lora"))
    expected = sample(open_model(adapter))
    same = open_model(adapter).export(tmp_path / "lora")
    assert torch.equal(sample(open_model(same, base=str(pipeline_folder))), expected)
    whole = open_model(adapter).export(tmp_path / "whole", merge=True)
    assert (whole / "model_index.json").is_file()
    assert torch.allclose(sample(open_model(whole)), expected, atol=1e-4)
    assert not (open_model(whole).export(tmp_path / "again") / LORA_WEIGHTS).exists()


def test_a_lora_without_a_note_needs_its_base(make_run, pipeline_folder, tmp_path):
    run = make_run("lora")
    adapter = export_model(run, tmp_path / "lora")
    expected = sample(open_model(run, which="best"))
    for _ in ("with the name of a folder that is elsewhere", "with nothing"):
        with refuses("missing-input", adapter):
            open_model(adapter)
        opened = open_model(adapter, base=str(pipeline_folder), max_sequence_length=16)
        assert torch.equal(sample(opened), expected)
        (adapter / "fewstep.json").unlink(missing_ok=True)
    (tmp_path / pipeline_folder.name).symlink_to(pipeline_folder)
    export_model(run, tmp_path / "again")
    assert torch.equal(sample(open_model(tmp_path / "again")), expected)  # it is beside it


def test_peft_loads_the_adapter(make_run, pipeline_folder):
    from peft import PeftModel

    exported = export_model(make_run("lora"))
    net = StableDiffusion3Pipeline.from_pretrained(pipeline_folder).transformer
    merged = PeftModel.from_pretrained(net, str(exported)).merge_and_unload().state_dict()
    pipe = StableDiffusion3Pipeline.from_pretrained(pipeline_folder)
    plain = {name: weight.clone() for name, weight in pipe.transformer.state_dict().items()}
    pipe.load_lora_weights(exported)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    fused = pipe.transformer.state_dict()
    assert merged.keys() == fused.keys()
    for name in merged:
        torch.testing.assert_close(merged[name], fused[name], rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(merged[name], plain[name]) for name in merged)
