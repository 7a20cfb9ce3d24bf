"""Teachers that are distilled already are refused before a weight is read, and the line helps."""

from __future__ import annotations

import json
import logging
import shutil

import pytest

from fewstep import models
from fewstep.models import distilled
from fewstep.utils.errors import FewstepError

FLUX = {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}
SDXL = {"_class_name": "StableDiffusionXLPipeline", "scheduler": ["diffusers", "LCMScheduler"]}
SD = {"_class_name": "StableDiffusionPipeline"}
SD3 = {"_class_name": "StableDiffusion3Pipeline"}
KLEIN = {"_class_name": "Flux2KleinPipeline"}
SANA = {"_class_name": "SanaPipeline", "transformer": ["diffusers", "SanaTransformer2DModel"]}
EULER = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}
ZERO_SNR = EULER | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
LEADING = EULER | {"timestep_spacing": "leading"}
ANCESTRAL = EULER | {"_class_name": "EulerAncestralDiscreteScheduler"}


def folder_of(root, index, name="teacher", card="", **configs):
    folder = root / name
    folder.mkdir()
    (folder / "model_index.json").write_text(json.dumps(index))
    for part, content in configs.items():
        file = "scheduler_config.json" if part == "scheduler" else "config.json"
        (folder / part).mkdir()
        (folder / part / file).write_text(json.dumps(content))
    if card:
        (folder / "README.md").write_text(card)
    return folder


@pytest.mark.parametrize(
    ("index", "configs", "evidence", "instead"),
    [
        (FLUX, {"transformer": {"guidance_embeds": False}}, "guidance_embeds", "FLUX.1-dev"),
        (FLUX, {"transformer": {"num_layers": 19}}, "guidance_embeds", "FLUX.1-dev"),
        (KLEIN | {"is_distilled": True}, {}, "is_distilled", "FLUX.2-klein-base-4B"),
        (SD, {"scheduler": EULER}, "trailing", "stable-diffusion-v1-5"),
        (SDXL, {"scheduler": ANCESTRAL}, "trailing", "stable-diffusion-v1-5"),
        (SDXL, {"scheduler": {"num_train_timesteps": 1000}}, "LCMScheduler", "xl-base-1.0"),
        (
            SD,
            {"unet": {"time_cond_proj_dim": 256}},
            "time_cond_proj_dim",
            "stable-diffusion-xl-base-1.0",
        ),
        (
            SD3,
            {"scheduler": {"_class_name": "TCDScheduler"}},
            "TCDScheduler",
            "stable-diffusion-xl-base-1.0",
        ),
        (
            SANA,
            {"transformer": {"guidance_embeds": True}},
            "guidance_embeds",
            "Sana_1600M_1024px_BF16_diffusers",
        ),
    ],
)
def test_its_configuration_gives_it_away(index, configs, evidence, instead, tmp_path):
    result = distilled.recognise("somewhere/teacher", folder_of(tmp_path, index, **configs))
    assert evidence in result.evidence
    assert result.instead.endswith(instead)
    assert "\n" not in str(result)


@pytest.mark.parametrize(
    ("index", "configs"),
    [
        (FLUX, {"transformer": {"guidance_embeds": True}}),
        (KLEIN | {"is_distilled": False}, {}),
        (KLEIN, {}),
        (SD, {"scheduler": LEADING, "unet": {"time_cond_proj_dim": None}}),
        (SD, {"scheduler": ZERO_SNR}),
        (SD3, {"scheduler": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}}),
        (SANA, {"transformer": {"guidance_embeds": False}}),
    ],
)
def test_teachers_are_left_alone(index, configs, tmp_path):
    card = "---\ntags: [text-to-image, flux]\n---\nAs quick as a turbo model? No.\n"
    assert (
        distilled.recognise("a/teacher", folder_of(tmp_path, index, card=card, **configs)) is None
    )


@pytest.mark.parametrize(
    ("address", "instead"),
    [
        ("Tongyi-MAI/Z-Image-Turbo", "Tongyi-MAI/Z-Image"),
        ("stabilityai/stable-diffusion-3.5-large-turbo", "stabilityai/stable-diffusion-3.5-large"),
        ("me/sdxl-lightning-4step", "the model it was made from"),
        ("me/my-lcm", "the model it was made from"),
        ("me/model-8-steps", "the model it was made from"),
        ("/models/Z-Image-Turbo/", "Tongyi-MAI/Z-Image"),
    ],
)
def test_its_name_gives_it_away(address, instead):
    assert distilled.recognise(address).instead == instead


@pytest.mark.parametrize(
    "address",
    ["ostris/Z-Image-De-Turbo", "turbo/sdxl", "me/turbocharged", "me/undistilled", "me/4000steps"],
)
def test_names_that_only_look_alike(address):
    assert distilled.recognise(address) is None


def test_a_cached_repo_is_known_by_its_folder(tmp_path):
    (tmp_path / "models--Tongyi-MAI--Z-Image-Turbo" / "snapshots").mkdir(parents=True)
    inside = tmp_path / "models--Tongyi-MAI--Z-Image-Turbo" / "snapshots"
    folder = folder_of(inside, {"_class_name": "ZImagePipeline"}, name="0123abc")
    assert distilled.recognise(str(folder), folder).model == "Z-Image-Turbo"


@pytest.mark.parametrize("tag", ["few-step", "distillation", "turbo"])
def test_its_card_gives_it_away(tag, tmp_path):
    card = f"---\nlicense: mit\ntags: [text-to-image, {tag}]\n---\n"
    assert tag in distilled.recognise("x/y", folder_of(tmp_path, SD3, card=card)).evidence


def test_our_own_student_names_its_teacher(tmp_path):
    folder = folder_of(tmp_path, SD3, card="---\nbase_model: owner/teacher\n---\n")
    (folder / "fewstep.json").write_text('{"steps": 4}')
    assert distilled.recognise(str(folder), folder).instead == "owner/teacher"


@pytest.mark.parametrize(
    "pipeline",
    [
        "ShapEPipeline",
        "ShapEImg2ImgPipeline",
        "VQDiffusionPipeline",
        "GlmImagePipeline",
        "SanaSprintPipeline",
        "LatentConsistencyModelPipeline",
        "StableAudioPipeline",
        "FluxKontextPipeline",
        "NobodyKnowsPipeline",
    ],
)
@pytest.mark.parametrize("force", [False, True])
def test_what_no_force_can_distil(pipeline, force, tmp_path):
    folder = folder_of(tmp_path, {"_class_name": pipeline})
    with pytest.raises(FewstepError) as caught:
        models.load(folder, force=force)
    assert caught.value.code == "unsupported"
    assert "\n" not in str(caught.value)


def test_load_refuses_in_one_line_and_force_warns(pipeline_folder, tmp_path, caplog):
    student = tmp_path / "student"
    shutil.copytree(pipeline_folder, student)
    (student / "fewstep.json").write_text('{"steps": 4}')
    with pytest.raises(FewstepError) as caught:
        models.load(student)
    assert caught.value.code == "distilled-teacher"
    assert "\n" not in str(caught.value)
    with pytest.raises(FewstepError) as caught:
        models.load_meta(student)
    assert caught.value.code == "distilled-teacher"
    with caplog.at_level(logging.WARNING, logger="fewstep"):
        assert models.load_meta(student, force=True).name == "sd3"
    assert [r.getMessage() for r in caplog.records if "forced" in r.getMessage()]
    caplog.clear()
    assert models.load(student, teacher=False).name == "sd3"
    assert not caplog.records, "a student that is only drawn from needs no warning"
