"""Samplers of diffusion, step by step against those of diffusers, from the same noise."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlxport.errors import UnsupportedError, UsageError
from mlxport.run.diffusion.samplers import SAMPLERS, make_sampler, usual_sampler

SCALED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("ddim", {**SCALED, "clip_sample": False, "set_alpha_to_one": False}),
    ("ddim", {}),
    ("ddim", {**SCALED, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}),
    ("ddim", {**SCALED, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "clip_sample": False}),
    ("ddim", {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample", "timestep_spacing": "linspace"}),
    ("euler", SCALED),
    ("euler", {**SCALED, "timestep_spacing": "leading"}),
    ("euler", {**SCALED, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}),
    ("euler-ancestral", {**SCALED, "timestep_spacing": "trailing"}),
    ("euler-ancestral", {**SCALED, "prediction_type": "v_prediction"}),
    ("flow-euler", FLOW),
    ("flow-euler", {"_class_name": FLOW["_class_name"]}),
]
STEPS = 7


def noise(seed: int) -> Any:
    return np.random.default_rng(seed).standard_normal((1, 4, 6, 8), dtype=np.float32)


def relative(ours: mx.array, theirs: Any) -> float:
    return float(np.abs(np.array(ours) - theirs.numpy()).max() / theirs.abs().max())


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of torch's tensors in diffusers
@pytest.mark.parametrize(("name", "config"), CASES)
def test_each_step_is_that_of_diffusers(name: str, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    diffusers = pytest.importorskip("diffusers")
    import torch

    original = getattr(diffusers, SAMPLERS[name].original).from_config({k: v for k, v in config.items() if k[0] != "_"})
    module = __import__(type(original).__module__, fromlist=["randn_tensor"])
    drawn = iter(range(100, 200))
    monkeypatch.setattr(module, "randn_tensor", lambda *a, **k: torch.from_numpy(noise(next(drawn))), raising=False)
    original.set_timesteps(STEPS)
    sampler = make_sampler(name, config, STEPS)
    assert np.allclose(sampler.timesteps, original.timesteps.numpy(), rtol=1e-6)
    scale = float(getattr(original, "init_noise_sigma", 1.0))
    assert sampler.scale == pytest.approx(scale, rel=1e-5)
    theirs, worst = torch.from_numpy(noise(0)) * scale, 0.0
    for index, time in enumerate(original.timesteps):
        said, ours = noise(index + 1), mx.array(theirs.numpy())
        if hasattr(original, "scale_model_input"):
            worst = max(worst, relative(sampler.seen(ours, index), original.scale_model_input(theirs, time)))
        theirs = original.step(torch.from_numpy(said), time, theirs, return_dict=False)[0]
        ours = sampler.step(mx.array(said), ours, index, mx.array(noise(100 + index)))
        worst = max(worst, relative(ours, theirs))
    # Where nothing, or nearly all, is kept of a picture, what is left of a difference in float32 has fewer digits.
    few_digits = "rescale_betas_zero_snr" in config or config.get("beta_schedule") == "squaredcos_cap_v2"
    assert worst < (1e-5 if few_digits else 2e-6)


def test_what_is_not_computed_is_refused():
    with pytest.raises(UsageError, match="trained for noise that is added") as error:
        make_sampler("flow-euler", SCALED, 5)
    assert "ddim, euler, euler-ancestral" in error.value.hint
    with pytest.raises(UsageError, match="trained for flows"):
        make_sampler("euler", FLOW, 5)
    with pytest.raises(UsageError, match="--steps 2000"):
        make_sampler("ddim", SCALED, 2000)
    for setting in ({"use_karras_sigmas": True}, {"beta_schedule": "sigmoid"}, {"timestep_spacing": "odd"}):
        with pytest.raises(UnsupportedError, match="not computed here"):
            make_sampler("euler", {**SCALED, **setting}, 5)


def test_the_folder_s_own_scheduler_is_the_usual_one():
    for name, kind in SAMPLERS.items():
        assert usual_sampler({"_class_name": kind.original}) == name
    assert usual_sampler({"_class_name": "PNDMScheduler"}) == "euler"
