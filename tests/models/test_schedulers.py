"""Every setting of every scheduler is honoured, has no part in a student's grid, or is refused.

Classes and settings are found by discovery in the installed diffusers, so that those of a later
version cannot slip through: what a table does not know is refused as soon as it is set.
"""

from __future__ import annotations

import inspect
import json
import math
import shutil

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from fewstep import models
from fewstep.core.schedules import FixedGrid, RandomGrid, few_step_sigmas, with_shift
from fewstep.models.schedulers import FLOW, TRAINED_TIMES, read_settings
from fewstep.models.shift import FlowSettings
from fewstep.utils.errors import FewstepError
from refusals import names_in, refuses
from tiny import discover

TOKENS = 1024
STEPS = 4
OTHER = {  # values of settings that are no numbers and no switches
    "time_shift_type": "linear",
    "beta_schedule": "scaled_linear",
    "trained_betas": np.linspace(1e-4, 0.03, 1000).tolist(),
    "timestep_spacing": "trailing",
    "timestep_type": "continuous",
    "interpolation_type": "log_linear",
    "final_sigmas_type": "sigma_min",
    "solver_type": {"UniPCMultistepScheduler": "bh1", "DEISMultistepScheduler": "logrho"},
    "algorithm_type": {
        "SASolverScheduler": "noise_prediction",
        "DEISMultistepScheduler": "dpmsolver++",
        "DPMSolverMultistepScheduler": "sde-dpmsolver++",
        "DPMSolverSinglestepScheduler": "sde-dpmsolver++",
    },
    "variance_type": "learned_range",
    "shift_terminal": 0.02,
    "upscale_mode": "nearest",
    "scale_factors": [0.5, 1.0],
    "lambda_min_clipped": -5.1,
    "disable_corrector": [0],
    "sigma_min": 0.03,
    "sigma_max": 14.0,
    "num_train_timesteps": 500,
}
LEFT_OUT = {"solver_p", "tau_func"}  # objects: no configuration in a folder can hold them
DYNAMIC = {"base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len", "time_shift_type"}


def class_of(name):
    return getattr(diffusers, name)


def changed(name, key, default, table):
    """A value that a setting has not by default, nor for models of that kind."""
    if key in table[name].needed:
        return {True: False, "flow_prediction": "v_prediction"}[table[name].needed[key]]
    value = OTHER.get(key)
    if isinstance(value, dict):
        value = value.get(name)
    if key == "prediction_type":
        return "v_prediction"
    if value is not None:
        return value
    if isinstance(default, bool):
        return not default
    if isinstance(default, int):
        return default + 1
    return default * 0.7 if isinstance(default, float) else "heun"


def settings_of(table):
    for name in table:
        for key, parameter in inspect.signature(class_of(name).__init__).parameters.items():
            if key != "self" and key not in LEFT_OUT:
                yield pytest.param(name, key, parameter.default, id=f"{name}-{key}")


def config_of(name, table, **more):
    return class_of(name)(**dict(table[name].needed) | more).config


def stock_grid(name, config):
    """Sigmas that the stock scheduler sets by itself, and those that it has made them of."""
    scheduler = class_of(name).from_config(config)
    if name == "FlowMatchEulerDiscreteScheduler":
        base = few_step_sigmas(STEPS)
        slope = (config.max_shift - config.base_shift) / (
            config.max_image_seq_len - config.base_image_seq_len
        )
        mu = config.base_shift + slope * (TOKENS - config.base_image_seq_len)
        scheduler.set_timesteps(sigmas=base, mu=mu if config.use_dynamic_shifting else None)
        return scheduler.sigmas[:-1], torch.tensor(base)
    scheduler.set_timesteps(STEPS)
    if name == "FlowMatchHeunDiscreteScheduler":  # asks twice at every level but the first
        base = torch.linspace(scheduler.sigma_max, scheduler.sigma_min, STEPS)
        return scheduler.sigmas[:-1:2], base
    ends = 1.0 if name.startswith(("Flow", "UniPC")) else 0.999
    last = 0.0 if name.startswith("Flow") else 1 - ends if ends < 1 else 0.001
    last = 0.0 if ends < 1 else last
    base = torch.linspace(ends, last, STEPS + 1, dtype=torch.float64)[:-1]
    return scheduler.sigmas[:-1].float(), base


def assert_honoured(name, config):
    stock, base = stock_grid(name, config)
    found = with_shift(base, read_settings(class_of(name), config, FLOW, "here").at(TOKENS))
    torch.testing.assert_close(found[:-1].float(), stock, rtol=1e-5, atol=3e-6)
    # And the scheduler that a student is given walks the same.
    student = read_settings(class_of(name), config, FLOW, "here").scheduler()
    again = read_settings(type(student), student.config, FLOW, "here")
    assert again == read_settings(class_of(name), config, FLOW, "here")


@pytest.mark.parametrize("name", FLOW)
def test_a_flow_schedulers_grid_is_read_as_it_is(name):
    assert_honoured(name, config_of(name, FLOW))


@pytest.mark.parametrize(("name", "key", "default"), settings_of(FLOW))
def test_every_setting_of_a_flow_scheduler_is_honoured_ignored_or_refused(name, key, default):
    row, value = FLOW[name], changed(name, key, default, FLOW)
    more = {key: value}
    if key in DYNAMIC and key in row.honoured:
        more |= {"use_dynamic_shifting": True}
    if key in row.honoured:
        config = config_of(name, FLOW, **more)
        assert_honoured(name, config)
        plain = config_of(name, FLOW, **{k: v for k, v in more.items() if k != key})
        assert not torch.equal(stock_grid(name, config)[0], stock_grid(name, plain)[0])
    elif key in row.ignored:
        config, plain = config_of(name, FLOW, **more), config_of(name, FLOW)
        assert torch.equal(stock_grid(name, config)[0], stock_grid(name, plain)[0])
        assert_honoured(name, config)
    else:
        config = dict(config_of(name, FLOW)) | more
        with refuses("unsupported", "here") as caught:
            read_settings(class_of(name), config, FLOW, "here")
        assert {key, name} <= names_in(caught.value)


@pytest.mark.parametrize(("name", "key", "default"), settings_of(TRAINED_TIMES))
def test_every_setting_of_a_trained_time_scheduler_is_honoured_ignored_or_refused(
    name, key, default
):
    kind, row = class_of(name), TRAINED_TIMES[name]
    value = changed(name, key, default, TRAINED_TIMES)
    plain = kind()
    if key in row.honoured or key in row.ignored:
        other = kind(**{key: value})
        settings = read_settings(kind, other.config, TRAINED_TIMES, "here")
        euler = diffusers.EulerDiscreteScheduler(**settings.model_dump())
        assert euler.config.prediction_type == other.config.prediction_type
        torch.testing.assert_close(euler.alphas_cumprod, other.alphas_cumprod, rtol=0, atol=1e-6)
        if key in row.ignored:
            assert torch.equal(plain.alphas_cumprod, other.alphas_cumprod)
    else:
        config = dict(plain.config) | {key: value}
        with refuses("unsupported", "here") as caught:
            read_settings(kind, config, TRAINED_TIMES, "here")
        assert {key, name} <= names_in(caught.value)


@pytest.mark.parametrize("table", [FLOW, TRAINED_TIMES], ids=["flow", "trained times"])
def test_a_class_that_nobody_looked_at_is_refused(table):
    names = [name for name in dir(diffusers) if name.endswith("Scheduler")]
    assert set(table) < set(names)
    for name in set(names) - set(table):
        kind = type(name, (), {"__init__": lambda self: None})
        with refuses("unsupported", "here") as caught:
            read_settings(kind, {}, table, "here")
        assert name in names_in(caught.value)


WRONG = (None, "3", True, 0, -1.0, float("nan"), float("inf"), 1e30, [3.0], {"a": 1})


@pytest.mark.parametrize("value", WRONG, ids=str)
@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler"])
def test_a_shift_that_is_no_positive_number_is_refused(name, value):
    row = FLOW[name]
    key = next(theirs for theirs, ours in row.honoured.items() if ours == "shift")
    with refuses("unsupported", "here"):
        read_settings(class_of(name), dict(row.needed) | {key: value}, FLOW, "here")


@pytest.mark.parametrize("key", sorted(DYNAMIC - {"time_shift_type"}))
@pytest.mark.parametrize("value", [None, "x", True, float("nan"), -float("inf"), [1]], ids=str)
def test_dynamic_shifting_needs_numbers(key, value):
    config = {"use_dynamic_shifting": True, key: value}
    kind = FlowMatchEulerDiscreteScheduler
    with refuses("unsupported", "here"):
        read_settings(kind, config, FLOW, "here")
    settings = read_settings(kind, config | {"use_dynamic_shifting": False}, FLOW, "here")
    assert settings == FlowSettings()  # without effect there


@pytest.mark.parametrize(
    "config",
    [
        {"base_image_seq_len": 4096},
        {"base_shift": 1e300, "max_shift": -1e300},
        {"base_shift": -5.0, "max_shift": -4.0, "time_shift_type": "linear"},
        {"base_shift": 900.0, "max_shift": 900.0},
        {"time_shift_type": "cubic"},
        {"use_dynamic_shifting": "yes"},
        {"shift_terminal": 1.0},
        {"shift_terminal": -0.1},
        {"shift_terminal": float("nan")},
        {"num_train_timesteps": 1000.0},
        {"num_train_timesteps": 0},
        {"invert_sigmas": "false"},
    ],
    ids=str,
)
def test_dynamic_shifting_that_comes_to_nothing_is_refused(config):
    with pytest.raises(FewstepError) as caught:
        read_settings(
            FlowMatchEulerDiscreteScheduler, {"use_dynamic_shifting": True} | config, FLOW, "here"
        ).at(TOKENS)
    assert caught.value.code in ("unsupported", "out-of-range")


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("UniPCMultistepScheduler", {"flow_shift": 3.0, "shift": 5.0}),
        ("FlowMatchEulerDiscreteScheduler", {"flow_shift": 5.0}),
        ("FlowMatchHeunDiscreteScheduler", {"use_dynamic_shifting": True}),
        ("FlowMapEulerDiscreteScheduler", {"shift_terminal": 0.02}),
    ],
)
def test_a_setting_of_another_class_is_not_passed_over(name, config):
    """The stock scheduler would, and whoever wrote it believes otherwise."""
    with refuses("unsupported", "here") as caught:
        read_settings(class_of(name), dict(FLOW[name].needed) | config, FLOW, "here")
    assert name in names_in(caught.value)
    agreeing = dict(FLOW[name].needed) | {"shift": 3.0, "flow_shift": 3.0}
    assert read_settings(class_of(name), agreeing, FLOW, "here").shift == 3.0


@pytest.mark.parametrize(
    "config",
    [
        {"prediction_type": "sample"},
        {"beta_schedule": "sigmoid"},
        {"beta_start": float("nan")},
        {"beta_end": "0.02"},
        {"beta_start": -0.1},
        {"num_train_timesteps": 1},
        {"num_train_timesteps": 10**12},
        {"trained_betas": [0.1, 2.0]},
        {"trained_betas": "linear"},
        {"trained_betas": [0.1, 0.2]},
        {"beta_start": 0.9, "beta_end": 0.99},
        {"rescale_betas_zero_snr": 1},
        {"thresholding": True},
    ],
    ids=str,
)
def test_trained_times_that_mean_nothing_are_refused(config):
    with refuses("unsupported", "here"):
        read_settings(DDIMScheduler, config, TRAINED_TIMES, "here")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("pipelines")
    for name in ("zimage", "auraflow", "sd15"):
        discover()[name].build(place / name)
    return place


def edited(folder, out, config=None, index=None):
    """A copy of a pipeline's folder with other settings of the scheduler; a text replaces them."""
    shutil.copytree(folder, out)
    for file, change in (("scheduler/scheduler_config.json", config), ("model_index.json", index)):
        old = json.loads((out / file).read_text())
        text = change if isinstance(change, str) else json.dumps(old | (change or {}))
        (out / file).write_text(text)
    return out


@pytest.mark.parametrize(
    ("name", "config", "index", "code"),
    [
        ("zimage", {"stochastic_sampling": True}, None, "unsupported"),
        ("zimage", {"_class_name": "UniPCMultistepScheduler"}, None, "mismatch"),
        ("zimage", None, {"scheduler": ["diffusers", "SchedulerOfTomorrow"]}, "unsupported"),
        ("zimage", None, {"scheduler": ["os", "system"]}, "unsupported"),
        ("zimage", None, {"scheduler": None}, "unsupported"),
        ("zimage", None, {"scheduler": 5}, "unsupported"),
        ("zimage", None, {"scheduler": ["diffusers", "AutoencoderKL"]}, "mismatch"),
        ("zimage", "{", None, "damaged"),
        ("zimage", "[1]", None, "damaged"),
        ("auraflow", {"use_dynamic_shifting": True}, None, "unsupported"),
        ("sd15", {"beta_schedule": "cosine"}, None, "unsupported"),
        ("sd15", {"trained_betas": [0.1, 0.2]}, None, "unsupported"),
    ],
)
def test_a_folder_is_refused_before_weights_are_read(folders, tmp_path, name, config, index, code):
    folder = edited(folders / name, tmp_path / "model", config, index)
    for file in folder.rglob("*.safetensors"):
        file.unlink()
    for load in (models.load, models.load_meta):
        with refuses(code, folder):
            load(folder)


def test_an_end_of_the_models_own_is_told_and_can_be_left_out(tmp_path):
    tiny = discover()["qwenimage"]
    tiny.build(tmp_path / "model")
    backbone = models.load_meta(tmp_path / "model", **tiny.options)
    base = few_step_sigmas(STEPS)
    for grid, last in (
        (RandomGrid(), 0.02),
        (RandomGrid(terminal=0.1), 0.1),
        (FixedGrid(terminal=None), None),
        (FixedGrid(shift=1.0), 0.25),
    ):
        found = backbone.student_shift(grid, *tiny.size)(base)
        assert found[-1] == pytest.approx(last) if last else found[-1] > 0.2
        (notes := backbone.grid_notes(grid, *tiny.size))
        assert len(notes) == (grid == RandomGrid())
        scheduler = backbone.student_scheduler(grid.shift, grid.terminal)
        scheduler.set_timesteps(sigmas=base, mu=math.log(3))
        ends = last if last in (0.02, 0.1, 0.25) else 0.5
        assert scheduler.sigmas[-2] == pytest.approx(ends)
    assert {"grid.terminal", "0.02"} <= names_in(backbone.grid_notes(RandomGrid(), *tiny.size)[0])
