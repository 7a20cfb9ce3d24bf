"""Scores as laws: what they are on clouds whose answer is known."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewstep.evaluation import available
from fewstep.evaluation.metrics.base import Measurements, References, ahead, build
from fewstep.evaluation.metrics.coverage import neighbour_scores
from fewstep.evaluation.metrics.diversity import Diversity, pairwise_distance
from fewstep.evaluation.metrics.frechet import frechet_distance
from fewstep.evaluation.metrics.oracle import Oracle, share
from fewstep.evaluation.preview_scores import energy_distance
from fewstep.utils.errors import FewstepError


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


def test_wrong_pictures_do_not_pass_for_diversity():
    features = cloud(6 * 4).reshape(6, 4, 4)
    shown = torch.ones(6, 4, dtype=torch.bool)
    shown[:, 3] = False
    ghostly = features.clone()
    ghostly[:, 3] += 100
    verdicts = ((("clean", True),),) * 6
    clean, ghosts = (
        Diversity()(Measurements(cloud(6), each, verdicts, shown), References())
        for each in (features, ghostly)
    )
    assert ghosts["diversity"] > clean["diversity"] + 10
    assert ghosts["diversity_right"] == clean["diversity_right"]
    three = Diversity()(Measurements(cloud(6), features[:, :3]), References())
    assert clean["diversity_right"] == pytest.approx(three["diversity"])


def test_prompts_without_two_right_pictures_are_left_out_of_their_diversity():
    features = cloud(5 * 3).reshape(5, 3, 4)
    shown = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]]).bool()
    rival_shown = torch.tensor([[1, 1, 1], [0, 0, 1], [1, 1, 1], [1, 0, 1], [1, 1, 1]]).bool()
    verdicts = ((("clean", True),),) * 5
    configuration = Measurements(cloud(5), features, verdicts, shown)
    baseline = Measurements(cloud(5), 2 * features, verdicts, rival_shown)
    found = Diversity()(configuration, References(baseline=baseline))
    each = pairwise_distance(features, shown)
    assert each.isnan().tolist() == [False, False, True, False, False]
    assert found["diversity_right"] == pytest.approx(float(each[[0, 1, 3, 4]].mean()))
    theirs = pairwise_distance(2 * features, rival_shown)
    assert found["ahead_diversity_right"] == pytest.approx(float((each - theirs)[[0, 3, 4]].mean()))
    nothing = Measurements(cloud(5), features, verdicts, torch.zeros(5, 3, dtype=torch.bool))
    assert "diversity_right" not in Diversity()(nothing, References(baseline=baseline))


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


# --------------------------------------------------------------------------- energy distance


def test_energy_distance_is_about_nothing_for_one_law_and_unbiased():
    values = [energy_distance(cloud(32, 2 * i), cloud(32, 2 * i + 1)) for i in range(200)]
    mean = sum(values) / len(values)
    assert abs(mean) < 0.01


def test_energy_distance_sees_shifts_and_collapse():
    a, b = cloud(64, 1), cloud(64, 2)
    near, far = energy_distance(a + 0.5, b), energy_distance(a + 2, b)
    assert 0 < near < far
    assert energy_distance(b.mean(0).repeat(64, 1), b) > 0.1


# -------------------------------------------------------------------------------------- oracle


def test_a_picture_is_right_when_all_its_flags_are():
    verdicts = (
        (("color", True), ("shape", True)),
        (("color", True), ("shape", False)),
        (("color", True), ("color", False), ("shape", True)),
        (("color", True), ("shape", True)),
    )
    measurements = Measurements(cloud(4), cloud(8).reshape(4, 2, 4), verdicts)
    scores = Oracle()(measurements, References())
    assert scores["right"] == 0.5
    assert scores["right_color"] == pytest.approx(4 / 5)
    assert scores["right_shape"] == pytest.approx(3 / 4)
    assert scores["right_error"] == share([True, True, False, False])[1] == 0.25


# ------------------------------------------------------------------------- ahead of the baseline


def test_what_makes_prompts_hard_cancels_between_arms_that_drew_the_same():
    hardness, gain = 10 * torch.randn(500, generator=torch.Generator().manual_seed(0)), cloud(500)
    figures = ahead("score", hardness + 0.1 * gain[:, 0] + 1, hardness)
    assert figures["ahead_score"] == pytest.approx(1, abs=0.02)
    assert figures["ahead_score_error"] == pytest.approx(0.1 / 500**0.5, rel=0.1)


def test_a_student_is_ahead_by_the_difference_of_the_figures():
    verdicts = [tuple((("color", bit == "1"),) for bit in bits) for bits in ("1101", "1000")]
    student, baseline = (
        Measurements(cloud(4), scale * cloud(8).reshape(4, 2, 4), flags)
        for scale, flags in zip((3, 2), verdicts, strict=True)
    )
    for score, name in ((Diversity(), "diversity"), (Oracle(), "right")):
        mine, theirs = (
            score(student, References(baseline=baseline)),
            score(baseline, References()),
        )
        assert mine[f"ahead_{name}"] == pytest.approx(mine[name] - theirs[name])
        assert mine[f"ahead_{name}_error"] > 0
        assert not any(figure.startswith("ahead_") for figure in theirs)


# ------------------------------------------------------------------------------------ registry


def test_all_scores_are_found_and_unknown_ones_named():
    assert available() == ["coverage", "diversity", "frechet", "oracle"]
    assert [score.name for score in build(["frechet", "oracle"])] == ["frechet", "oracle"]
    with pytest.raises(FewstepError, match="did you mean 'frechet'"):
        build(["frechett"])


def test_no_arm_is_compared_with_itself():
    configuration, real = (
        Measurements(cloud(20, s), cloud(40, s).reshape(20, 2, 4)) for s in (1, 2)
    )
    references = References({"teacher": configuration, "real": real})
    for score in build(["frechet", "coverage"]):
        assert not any(name.endswith("_teacher") for name in score(configuration, references))
        assert any(name.endswith("_real") for name in score(configuration, references))
