"""Metrics as laws: what they are on clouds whose answer is known."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPConfig, CLIPModel

from fewstep.config.strict import Named
from fewstep.evaluation.metrics import METRICS, build
from fewstep.evaluation.metrics.base import FEATURES, Measurements, References, Values, lead
from fewstep.evaluation.metrics.coverage import neighbour_scores
from fewstep.evaluation.metrics.diversity import Diversity, pairwise_distance
from fewstep.evaluation.metrics.frechet import frechet_distance
from fewstep.utils.errors import FewstepError
from toyworld_training.pipeline import clip_tokenizer


def cloud(count, seed=0, size=4):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------- Frechet distance


def test_frechet_is_nothing_between_a_cloud_and_itself():
    assert frechet_distance(cloud(100), cloud(100)) == pytest.approx(0, abs=1e-9)


@given(st.floats(-3, 3))
def test_frechet_of_a_moved_cloud_is_the_square_of_the_way(way):
    moved = cloud(50) + torch.tensor([way, 0.0, 0.0, 0.0])
    assert frechet_distance(cloud(50), moved) == pytest.approx(way**2, abs=1e-4)


def test_frechet_of_diagonal_gaussians_is_the_closed_form():
    a = cloud(100, 1)
    a = a - a.mean(0)
    # Whitened, so that the covariance is exactly the identity.
    a = (a.double() @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(a.double().T))).T).float()
    scale = torch.tensor([2.0, 0.5, 1.0, 3.0])
    assert frechet_distance(a, a * scale) == pytest.approx(float((scale - 1).square().sum()), 1e-4)


def test_frechet_is_symmetric_and_ignores_order_and_rotation():
    a, b = cloud(80, 1), 2 * cloud(70, 2) + 1
    rotation = torch.linalg.qr(cloud(4, 3))[0]
    expected = frechet_distance(a, b)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(a.flip(0), b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(a @ rotation, b @ rotation) == pytest.approx(expected, rel=1e-4)


def test_frechet_survives_flat_clouds():
    flat = cloud(3, 1, size=16)  # fewer points than directions
    assert frechet_distance(flat, flat + 1) == pytest.approx(16, rel=1e-4)


# ---------------------------------------------------------------------------------- diversity


def test_diversity_is_the_mean_over_pairs():
    features = cloud(3 * 5).reshape(3, 5, 4)
    pairs = list(itertools.combinations(range(5), 2))
    expected = torch.stack([(features[:, i] - features[:, j]).norm(dim=1) for i, j in pairs])
    assert torch.allclose(pairwise_distance(features).float(), expected.mean(0), atol=1e-6)


def test_diversity_of_copies_is_nothing_and_it_scales():
    same = cloud(6)[:, None].repeat(1, 8, 1)
    assert pairwise_distance(same).abs().max() == 0
    features = cloud(48).reshape(6, 8, 4)
    assert torch.allclose(pairwise_distance(3 * features), 3 * pairwise_distance(features))


# ----------------------------------------------------------------------------------- coverage


def test_a_cloud_fills_itself():
    scores = neighbour_scores(cloud(60), cloud(60))
    assert scores["precision"] == scores["recall"] == scores["coverage"] == 1.0


def test_a_cloud_far_away_fills_nothing():
    assert set(neighbour_scores(cloud(60), cloud(60) + 100).values()) == {0.0}


def test_one_mode_of_two_is_precise_but_covers_half():
    two_modes = torch.cat([cloud(100, 1), cloud(100, 2) + 50])
    scores = neighbour_scores(cloud(200, 3), two_modes)
    assert scores["precision"] > 0.9
    assert scores["recall"] < 0.55 and scores["coverage"] < 0.55


def test_an_outlier_buys_recall_but_not_coverage():
    # A far outlier owns a huge ball: recall is fooled by it, coverage is not (Naeem et al.).
    fake = torch.cat([cloud(60, 1) + 30, torch.full((1, 4), -300.0)])
    scores = neighbour_scores(fake, cloud(60, 2))
    assert scores["recall"] == 1.0 and scores["coverage"] == 0.0


# ------------------------------------------------------------------------- lead over the baseline


def of_features(single, repeated):
    return Measurements({FEATURES: Values(single, repeated)})


def test_what_makes_prompts_hard_cancels_between_configurations_that_drew_the_same():
    hardness, gain = 10 * torch.randn(500, generator=torch.Generator().manual_seed(0)), cloud(500)
    figures = lead("x", hardness + 0.1 * gain[:, 0] + 1, hardness)
    assert figures["lead_x"] == pytest.approx(1, abs=0.02)
    assert figures["lead_x_error"] == pytest.approx(0.1 / 500**0.5, rel=0.1)


def test_a_student_leads_by_the_difference_of_the_figures():
    student, baseline = (
        of_features(cloud(4), scale * cloud(8).reshape(4, 2, 4)) for scale in (3, 2)
    )
    ours = Diversity()(student, References(baseline=baseline))
    theirs = Diversity()(baseline, References())
    assert ours["lead_diversity"] == pytest.approx(ours["diversity"] - theirs["diversity"])
    assert ours["lead_diversity_error"] > 0
    assert not any(name.startswith("lead_") for name in theirs)


def test_no_configuration_is_compared_with_itself():
    teacher, real = (of_features(cloud(20, s), cloud(40, s).reshape(20, 2, 4)) for s in (1, 2))
    references = References({"teacher": teacher, "real": real})
    for metric in build([Named(name="frechet"), Named(name="coverage")]):
        figures = metric(teacher, references)
        assert not any(name.endswith("_teacher") for name in figures)
        assert any(name.endswith("_real") for name in figures)


# ----------------------------------------------------------------------------------- CLIPScore


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A random CLIP model of both towers, with a tokenizer."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    tokenizer = clip_tokenizer("!")
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    size |= {"num_attention_heads": 2, "projection_dim": 8}
    text = {**size, "vocab_size": len(tokenizer), "max_position_embeddings": 6}
    text |= {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    vision = {**size, "image_size": 32, "patch_size": 16}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    CLIPModel(config).save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    return folder


def test_clip_score_compares_each_picture_with_its_own_prompt(clip_folder):
    (metric,) = build([Named(name="clip_score", model=str(clip_folder))])
    prompts = ["red circle", "blue square", "green cross left and a pink triangle on brown"]
    images = torch.rand(3, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    metric.prepare(prompts)
    scores = metric.measure(prompts, images)
    assert scores.shape == (3,) and ((scores >= 0) & (scores <= 100)).all()
    flipped = metric.measure(prompts[::-1], images.flip(0)).flip(0)
    assert torch.allclose(scores, flipped, atol=1e-4)
    assert not torch.allclose(scores, metric.measure(prompts[::-1], images), atol=1e-2)
    alone = torch.cat(
        [metric.measure([p], image[None]) for p, image in zip(prompts, images, strict=True)]
    )
    assert torch.allclose(scores, alone, atol=1e-3)
    values = Measurements({"clip_score": Values(scores, scores[:, None])})
    figures = metric(values, References(baseline=values))
    assert figures["clip_score"] == pytest.approx(float(scores.mean()), rel=1e-5)
    assert figures["lead_clip_score"] == 0


def test_clip_score_is_known_by_its_weights(clip_folder, tmp_path):
    (metric,) = build([Named(name="clip_score", model=str(clip_folder))])
    other = tmp_path / "other"
    CLIPModel(CLIPModel.from_pretrained(clip_folder).config).save_pretrained(other)
    (another,) = build([Named(name="clip_score", model=str(other))])
    assert metric.key != another.key


# ------------------------------------------------------------------------------------ registry


def test_metrics_are_found_by_name_in_the_order_of_the_recipe():
    assert {"frechet", "coverage", "diversity", "clip_score"} <= set(METRICS.available())
    recipes = [Named(name="frechet"), Named(name="coverage")]
    assert [metric.name for metric in build(recipes)] == ["frechet", "coverage"]


@pytest.mark.parametrize(
    ("recipe", "code"),
    [
        ({"name": "frechett"}, "unknown-name"),
        ({"name": "clip_score"}, "config"),
        ({"name": "clip_score", "model": 3}, "config"),
        ({"name": "frechet", "model": "x"}, "config"),
    ],
)
def test_settings_of_metrics_are_strict(recipe, code):
    with pytest.raises(FewstepError) as refused:
        build([Named(**recipe)])
    assert refused.value.code == code


def test_a_metric_is_listed_once():
    with pytest.raises(FewstepError) as refused:
        build([Named(name="frechet"), Named(name="frechet")])
    assert refused.value.code == "config"


def test_weights_that_are_not_there_are_told_before_anything_is_measured():
    (metric,) = build([Named(name="clip_score", model="./nowhere")])
    with pytest.raises(FewstepError) as refused:
        metric.prepare(["a cat"])
    assert refused.value.code == "missing-file"
