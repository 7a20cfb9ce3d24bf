"""Laws of the change of path: an eps or v model is asked as the velocity field that it is."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from torch import nn

from fewstep import models
from fewstep.core.flow import sigma_from_vp
from fewstep.core.schedules import RandomGrid, few_step_sigmas, with_shift
from fewstep.core.solver import sample
from fewstep.core.types import Conditioning
from fewstep.models.variance_preserving import VariancePreserving
from fewstep.utils.errors import FewstepError
from tiny import pixart, stable_diffusion

MEAN, STD = 0.4, 0.7
COND = Conditioning({"none": torch.zeros(5, 1)})


class Gaussian(VariancePreserving):
    """A model of data N(MEAN, STD^2), known exactly at every time; it has no pipeline files."""

    name = "gaussian"
    pipelines = ()

    def __init__(self, prediction_type="epsilon", **betas):
        scheduler = DDIMScheduler(
            **(stable_diffusion.BETAS | betas), prediction_type=prediction_type
        )
        pipe = SimpleNamespace(
            scheduler=scheduler, components={}, vae_scale_factor=8, unet=nn.Identity()
        )
        super().__init__(pipe, "here")
        self.asked = []

    def predict(self, net, x_vp, time, cond):
        self.asked.append(time)
        table = self.alphas_cumprod
        log_ratio = 0.5 * (torch.log1p(-table) - torch.log(table))
        left = time.long().clamp(max=len(table) - 2)
        share = (time - left).double()
        at = log_ratio[left] * (1 - share) + log_ratio[left + 1] * share
        a = torch.sigmoid(-2 * at).sqrt()[:, None]
        b = torch.sigmoid(2 * at).sqrt()[:, None]
        eps = b * (x_vp.double() - a * MEAN) / ((a * STD) ** 2 + b**2)
        x0 = (x_vp.double() - b * eps) / a
        v_prediction = self.euler.config["prediction_type"] == "v_prediction"
        return (a * eps - b * x0 if v_prediction else eps).to(x_vp)

    def encode_prompts(self, prompts):
        return COND

    def latent_shape(self, height, width):
        return (3,)


def closed_form(xt, sigma):
    """E[eps - x0 | xt] of the same data on our path."""
    s = sigma[:, None]
    gain = (1 - s) * STD**2 / (((1 - s) * STD) ** 2 + s**2)
    return (xt - MEAN - gain * (xt - (1 - s) * MEAN)) / s


def ask(model, xt, sigma):
    return model.velocity(nn.Identity(), xt, sigma, COND)


SCHEDULES = {"sd": {}, "pixart": pixart.BETAS, "cosine": {"beta_schedule": "squaredcos_cap_v2"}}


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("betas", SCHEDULES.values(), ids=SCHEDULES)
def test_a_gaussian_teacher_gives_the_closed_form_velocity(kind, betas):
    """At whole times and between them, from the first to the last trained time."""
    model = Gaussian(kind, **betas)
    table = model.shift(64, 64).table
    first, last = table[[0, -1]]
    for fraction in torch.linspace(0, 1, 41, dtype=torch.float64):
        sigma = (first + fraction * (last - first)).expand(5)
        xt = torch.randn(5, 3, dtype=torch.float64)
        torch.testing.assert_close(
            ask(model, xt, sigma), closed_form(xt, sigma), rtol=1e-6, atol=1e-6
        )


def test_v_prediction_equals_eps_prediction_of_the_same_function():
    eps_model, v_model = Gaussian("epsilon"), Gaussian("v_prediction")
    for sigma in (0.02, 0.0284, 0.3, 0.9, 0.936, 0.97, 1.0):
        xt, at = torch.randn(5, 3, dtype=torch.float64), torch.full((5,), sigma).double()
        torch.testing.assert_close(ask(eps_model, xt, at), ask(v_model, xt, at))


def test_the_velocity_is_continuous_and_defined_up_to_pure_noise():
    model, xt = Gaussian(), torch.randn(1, 3, dtype=torch.float64).expand(5, 3)
    sigma = torch.linspace(0.02, 1, 4000, dtype=torch.float64)
    velocity = torch.stack([ask(model, xt[:1], each[None])[0] for each in sigma])
    assert torch.isfinite(velocity).all()
    assert velocity.diff(dim=0).abs().max() < 0.02
    assert model.asked[-1] == 999 and model.asked[0] == 0


def test_the_answer_is_the_velocity_s_x0_also_beyond_the_trained_range():
    class Sure(Gaussian):
        def predict(self, net, x_vp, time, cond):
            a = self.alphas_cumprod[time.long()].sqrt()[:, None]
            return (x_vp - a * 2.0) / (1 - a**2).sqrt()

    for sigma in (0.02, 0.97, 1.0):
        xt, at = torch.randn(5, 3, dtype=torch.float64), torch.full((5,), sigma).double()
        x0 = xt - at[:, None] * ask(Sure(), xt, at)
        torch.testing.assert_close(x0, torch.full_like(x0, 2.0))


def test_float32_finds_whole_times_again():
    model = Gaussian()
    table = model.shift(64, 64).table.float()
    xt = torch.zeros(1000, 3)
    model.velocity(nn.Identity(), xt, table, COND)
    assert torch.equal(model.asked[-1], torch.arange(1000.0))


# ---------------------------------------------------------------------------------- grids


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 16, 80])
def test_shift_asks_the_times_of_a_trailing_schedule(steps):
    model = Gaussian()
    scheduler = model.student_scheduler()
    scheduler.set_timesteps(timesteps=model.stock_call(few_step_sigmas(steps), 64, 64)["timesteps"])
    found = with_shift(torch.tensor(few_step_sigmas(steps)), model.shift(64, 64))
    expected = scheduler.sigmas / (1 + scheduler.sigmas)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    as_list = model.shift(64, 64)(few_step_sigmas(steps))
    torch.testing.assert_close(torch.tensor(as_list), found[:-1])
    plain = model.student_scheduler()
    plain.set_timesteps(steps)
    assert (plain.timesteps - scheduler.timesteps).abs().max() <= 1


def test_four_steps_ask_999_749_499_249():
    assert Gaussian().stock_call(few_step_sigmas(4), 64, 64)["timesteps"] == [999, 749, 499, 249]


def test_random_grids_fall_from_the_last_trained_sigma():
    model = Gaussian()
    a2 = model.alphas_cumprod[-1]
    for seed in range(20):
        grid = model.shift(64, 64)(RandomGrid()(torch.Generator().manual_seed(seed)))
        assert grid[0] == pytest.approx(float(sigma_from_vp(a2.sqrt(), (1 - a2).sqrt())))
        assert (grid.diff() <= 0).all() and grid[-1] > 0


def test_zero_terminal_signal_to_noise_starts_at_pure_noise():
    """Such models predict v; the stock scheduler keeps a little signal, and so do we."""
    model = Gaussian("v_prediction", rescale_betas_zero_snr=True)
    assert model.shift(64, 64)([1.0])[0] == pytest.approx(1, abs=1e-3)
    xt, sigma = torch.randn(5, 3, dtype=torch.float64), torch.ones(5, dtype=torch.float64)
    torch.testing.assert_close(ask(model, xt, sigma), closed_form(xt, sigma), rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    "scheduler",
    [FlowMatchEulerDiscreteScheduler(), DDIMScheduler(prediction_type="sample")],
    ids=["flow", "sample"],
)
def test_schedulers_of_other_models_are_refused(scheduler):
    pipe = SimpleNamespace(scheduler=scheduler, components={})
    with pytest.raises(FewstepError) as caught:
        VariancePreserving.__init__(Gaussian.__new__(Gaussian), pipe, "here")
    assert caught.value.code == "unsupported"


# ------------------------------------------------------------------------------- pipelines


def load(tmp_path, tiny, **settings):
    tiny.build(tmp_path / "pipeline")
    index = tmp_path / "pipeline" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | settings))
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    backbone = models.load(tmp_path / "pipeline", **tiny.options)
    pipe.scheduler = backbone.student_scheduler()
    return backbone, pipe


def test_sdxl_is_guided_by_zeros_where_the_pipeline_is(tmp_path):
    tiny = stable_diffusion.sdxl
    backbone, pipe = load(tmp_path, tiny, force_zeros_for_empty_prompt=True)
    assert all(not tensor.any() for tensor in backbone.null(2).tensors.values())
    start, cond = backbone.draw_noise([1], *tiny.size), backbone.encode(["a ring"])
    velocity = backbone.guided(
        lambda xt, sigma, cond: backbone.velocity(backbone.net, xt, sigma, cond), 1, 3.0
    )
    sigmas = with_shift(torch.tensor(few_step_sigmas(4)), backbone.shift(*tiny.size))
    with torch.no_grad():
        found = sample(velocity, start, sigmas, cond)
    call = backbone.stock_call(few_step_sigmas(4), *tiny.size) | {
        "guidance_scale": 3.0,
        "output_type": "latent",
    }
    expected = pipe(
        "a ring", latents=stable_diffusion.first_noise(backbone, start, tiny.size), **call
    )
    torch.testing.assert_close(found, expected.images, rtol=0, atol=1e-5 * found.abs().max().item())


def test_the_number_of_steps_alone_draws_the_same(tmp_path):
    """An exported folder's scheduler is trailing, so that nobody has to know its times."""
    tiny = stable_diffusion.sd15
    backbone, pipe = load(tmp_path, tiny)
    call = backbone.stock_call(few_step_sigmas(4), *tiny.size) | {"output_type": "latent"}
    plain = {name: value for name, value in call.items() if name != "timesteps"}
    images = [
        pipe("a ring", generator=torch.Generator().manual_seed(0), **each).images
        for each in (call, plain)
    ]
    assert torch.equal(*images)


def test_unets_of_consistency_models_are_refused(tmp_path):
    tiny = stable_diffusion.sd15
    backbone, _ = load(tmp_path, tiny)
    backbone.pipe.unet.register_to_config(time_cond_proj_dim=8)
    with pytest.raises(FewstepError) as caught:
        type(backbone)(backbone.pipe, backbone.source)
    assert caught.value.code == "distilled-teacher"
