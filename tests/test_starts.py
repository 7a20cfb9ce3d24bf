"""Where a student starts: at other weights, at a LoRA, or at the difference of two models."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from fewstep import models
from fewstep.config import Recipe
from fewstep.train.roles import FAKE_TEACHER, STUDENT, Roles, become_student
from fewstep.train.starts import start_student
from refusals import refuses

LAYER = "transformer_blocks.0.attn.to_q"


def recipe_of(folder, init, *, mode="full", rank=2, **model):
    lora = {"lora": {"rank": rank, "alpha": 3.0}} if mode == "lora" else {}
    return Recipe.from_values(
        {
            "model": {"path": str(folder), "options": {"max_sequence_length": 16}, **model},
            "data": {"prompts": ["a red circle"], "batch_size": 1},
            "resolution": {"height": 64, "width": 64},
            "objectives": [{"name": "dm"}, {"name": "cdm"}],
            "student": {"mode": mode, "init": init, **lora},
            "train": {"steps": 4},
        }
    )


def started(recipe, notes=None):
    """The roles of a fresh run, and a pretrained network beside them."""
    backbone = models.load(recipe.model.address, **recipe.model.options)
    roles = Roles.build(backbone, recipe.student, seed=0)
    start_student(roles, recipe, backbone, (notes if notes is not None else []).append)
    return roles


def student_weights(recipe):
    """The weights that the student of a fresh run draws with, adapters added."""
    roles = started(recipe)
    if recipe.student.mode == "full":
        return {name: each.detach() for name, each in roles.parameters(STUDENT).items()}
    found = {}
    for name, module in roles.net(STUDENT).named_modules():
        if hasattr(module, "get_delta_weight"):
            change = module.get_delta_weight(STUDENT)
            assert not module.get_delta_weight(FAKE_TEACHER).any()  # it is the teacher
            assert torch.equal(module.lora_A[STUDENT].weight, module.lora_A[FAKE_TEACHER].weight)
            found[f"{name}.weight"] = (module.get_base_layer().weight + change).detach()
    return found


def network_of(folder):
    return load_file(next((folder / "transformer").glob("*.safetensors")))


@pytest.fixture(scope="module")
def lora(pipeline_folder, tmp_path_factory):
    """A LoRA of rank 3 of two layers, and its changes."""
    generator = torch.Generator().manual_seed(3)
    tensors, changes = {}, {}
    weights = network_of(pipeline_folder)
    for name in (LAYER, "transformer_blocks.1.ff.net.2"):
        out, into = weights[f"{name}.weight"].shape
        down, up = (torch.randn(x, generator=generator) for x in ((3, into), (out, 3)))
        tensors |= {f"transformer.{name}.lora_A.weight": down}
        tensors |= {f"transformer.{name}.lora_B.weight": up}
        changes[f"{name}.weight"] = up @ down
    file = tmp_path_factory.mktemp("turbo") / "turbo.safetensors"
    save_file(tensors, file)
    return file, changes


@pytest.fixture(scope="module")
def tuned(pipeline_folder, lora, tmp_path_factory):
    """A copy of the model with the LoRA in its weights."""
    folder = tmp_path_factory.mktemp("tuned") / "model"
    shutil.copytree(pipeline_folder, folder)
    weights = network_of(folder)
    for name, change in lora[1].items():
        weights[name] = weights[name] + change
    save_file(weights, next((folder / "transformer").glob("*.safetensors")), {"format": "pt"})
    return folder


def test_another_model_is_taken_as_it_is(pipeline_folder, tuned):
    found = student_weights(recipe_of(pipeline_folder, str(tuned)))
    expected = network_of(tuned)
    assert all(torch.equal(each, expected[name]) for name, each in found.items())


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_a_lora_is_added_exactly_where_ranks_allow(pipeline_folder, lora, tuned, mode):
    found = student_weights(recipe_of(pipeline_folder, str(lora[0]), mode=mode, rank=4))
    expected = network_of(tuned)
    for name, each in found.items():
        torch.testing.assert_close(each, expected[name])


@pytest.mark.parametrize("relative", [False, True])
def test_the_difference_of_two_models_becomes_adapters(pipeline_folder, lora, tuned, relative):
    init = {"path": str(tuned)} | ({"relative_to": str(pipeline_folder)} if relative else {})
    found = student_weights(recipe_of(pipeline_folder, init, mode="lora", rank=3))
    expected = network_of(tuned)
    for name, each in found.items():
        torch.testing.assert_close(each, expected[name], atol=2e-5, rtol=1e-4)


def test_a_difference_is_added_to_the_teacher_in_full_mode(pipeline_folder, lora, tuned):
    init = {"path": str(pipeline_folder), "relative_to": str(tuned)}  # the other way round
    found, base = student_weights(recipe_of(pipeline_folder, init)), network_of(pipeline_folder)
    for name, each in found.items():
        torch.testing.assert_close(each, base[name] - lora[1].get(name, 0.0))


def test_below_its_rank_the_nearest_matrix_is_taken_and_told(pipeline_folder, lora, tuned):
    notes = []
    roles = started(recipe_of(pipeline_folder, str(tuned), mode="lora", rank=1), notes)
    layer, change = roles.net(STUDENT).get_submodule(LAYER), lora[1][f"{LAYER}.weight"]
    lost = (layer.get_delta_weight(STUDENT) - change).norm()
    torch.testing.assert_close(lost, torch.linalg.svdvals(change)[1:].norm())
    assert len(notes) == 1
    roles = started(recipe_of(pipeline_folder, str(lora[0]), mode="lora", rank=1))
    layer = roles.net(STUDENT).get_submodule(LAYER)
    torch.testing.assert_close((layer.get_delta_weight(STUDENT) - change).norm(), lost)


@pytest.mark.parametrize("theirs", ["full", "lora"])
@pytest.mark.parametrize("raw", [False, True])
def test_a_run_goes_on_as_another_run(make_run, pipeline_folder, theirs, raw):
    from fewstep.train.checkpoint import store

    run = make_run(theirs)
    init = {"path": str(run), "raw": raw}
    saved = store.student_weights(store.find(run), raw=raw)
    backbone = models.load(pipeline_folder, max_sequence_length=16)
    net = become_student(backbone, Recipe.of_run(run).student, saved)
    mode = "full" if theirs == "full" else "lora"
    if theirs == "lora" and raw:  # at the teacher, as it was saved untrained
        with refuses("mismatch", "student.init"):
            student_weights(recipe_of(pipeline_folder, init, mode=mode))
        return
    found = student_weights(recipe_of(pipeline_folder, init, mode=mode))
    for name, each in found.items():
        layer = net.get_submodule(name.rpartition(".")[0])
        if hasattr(layer, "get_delta_weight"):
            expected = layer.get_base_layer().weight + layer.get_delta_weight(STUDENT)
            torch.testing.assert_close(each, expected)
        else:
            assert torch.equal(each, dict(net.named_parameters())[name])


def test_what_cannot_be_a_start_is_refused(pipeline_folder, lora, tuned):
    def refused(code, init, **more):
        with refuses(code, "student.init"):
            started(recipe_of(pipeline_folder, init, **more))

    refused("mismatch", str(pipeline_folder), mode="lora")  # no difference
    refused("mismatch", {"path": str(lora[0]), "relative_to": str(tuned)})
    narrow = recipe_of(pipeline_folder, str(lora[0]), mode="lora").model_dump(mode="json")
    narrow["student"]["lora"]["targets"] = ["attn.to_k"]
    with refuses("mismatch", "student.init"):  # nothing to hold its layers
        started(Recipe.from_values(narrow))
