"""Samplers: from what a model says of noise to a picture with less of it, step by step.

DDIM (https://arxiv.org/abs/2010.02502), Euler's method and its ancestral form (https://arxiv.org/abs/2206.00364, and
k-diffusion's ``sample_euler_ancestral``), Euler's method on straight flows (https://arxiv.org/abs/2403.03206): as
diffusers computes them, defaults of absent settings included, which differ from class to class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import mlx.core as mx
import numpy as np

from mlxport.errors import UsageError
from mlxport.run.diffusion.noise_levels import kept_shares, refused, spaced_steps

__all__ = ["SAMPLERS", "Sampler", "make_sampler", "usual_sampler"]


class Sampler(ABC):
    """One way from noise to a picture, in a number of steps.

    Attributes:
        original: The class of diffusers that computes the same.
        draws: Whether each step takes noise of its own.
        timesteps: What the model is told at each step.
        scale: What noise of deviation 1 is multiplied with at the start.
    """

    original: ClassVar[str]
    draws: ClassVar[bool] = False
    timesteps: list[float]
    scale: float = 1.0

    def __init__(self, config: Mapping[str, Any], count: int) -> None:
        self._predicts = str(config.get("prediction_type", "epsilon"))
        if config.get("thresholding", False):
            raise refused("thresholding")

    def seen(self, latents: mx.array, index: int) -> mx.array:
        """What the model is to see of latents at a step."""
        return latents

    @abstractmethod
    def noised(self, latents: mx.array, noise: mx.array, index: int) -> mx.array:
        """A picture's latents with as much noise as there is before a step."""

    @abstractmethod
    def step(self, said: mx.array, latents: mx.array, index: int, noise: mx.array | None) -> mx.array:
        """Latents after a step.

        Args:
            said: By the model.
            latents: Before the step.
            index: Of the step.
            noise: As much as latents, where the sampler draws.
        """


class _Ddim(Sampler):
    original = "DDIMScheduler"

    def __init__(self, config: Mapping[str, Any], count: int) -> None:
        super().__init__(config, count)
        kept = kept_shares(config)
        self._kept = [float(share) for share in kept]
        self._last = 1.0 if config.get("set_alpha_to_one", True) else self._kept[0]
        self._stride = len(kept) // count
        self.timesteps = spaced_steps(config, count, "leading", whole=True).tolist()
        clips = config.get("clip_sample", True)
        self._clip = float(config.get("clip_sample_range", 1.0)) if clips else None

    def noised(self, latents: mx.array, noise: mx.array, index: int) -> mx.array:
        kept = self._kept[int(self.timesteps[index])]
        return kept**0.5 * latents + (1 - kept) ** 0.5 * noise  # type: ignore[no-any-return]

    def step(self, said: mx.array, latents: mx.array, index: int, noise: mx.array | None) -> mx.array:
        now = int(self.timesteps[index])
        kept, after = self._kept[now], now - self._stride
        left = self._kept[after] if after >= 0 else self._last
        picture, noise = self._parted(said, latents, kept)
        if self._clip is not None:
            picture = mx.clip(picture, -self._clip, self._clip)
        return left**0.5 * picture + (1 - left) ** 0.5 * noise  # type: ignore[no-any-return]

    def _parted(self, said: mx.array, latents: mx.array, kept: float) -> tuple[mx.array, mx.array]:
        """The picture and the noise that latents are made of, as the model has it."""
        of_picture, of_noise = kept**0.5, (1 - kept) ** 0.5
        match self._predicts:
            case "epsilon":
                return (latents - of_noise * said) / of_picture, said
            case "v_prediction":
                return of_picture * latents - of_noise * said, of_picture * said + of_noise * latents
            case "sample":
                return said, (latents - of_picture * said) / of_noise
            case other:
                raise refused(f"prediction_type {other!r}")


class _Euler(Sampler):
    original = "EulerDiscreteScheduler"

    def __init__(self, config: Mapping[str, Any], count: int) -> None:
        super().__init__(config, count)
        for name in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"):
            if config.get(name, False):
                raise refused(name)
        if config.get("interpolation_type", "linear") != "linear" or config.get("final_sigmas_type", "zero") != "zero":
            raise refused("another interpolation or end than usual")
        kept = kept_shares(config).astype(np.float64)
        steps = spaced_steps(config, count, "linspace", whole=False)
        found = np.interp(steps, np.arange(len(kept)), ((1 - kept) / kept) ** 0.5)
        self._sigmas = [*found.astype(np.float32).tolist(), 0.0]
        self.timesteps = steps.tolist()
        most = max(self._sigmas)
        whole = config.get("timestep_spacing", "linspace") in ("linspace", "trailing")
        self.scale = most if whole else (most**2 + 1) ** 0.5

    def seen(self, latents: mx.array, index: int) -> mx.array:
        return latents / (self._sigmas[index] ** 2 + 1) ** 0.5  # type: ignore[no-any-return]

    def noised(self, latents: mx.array, noise: mx.array, index: int) -> mx.array:
        return latents + noise * self._sigmas[index]  # type: ignore[no-any-return]

    def step(self, said: mx.array, latents: mx.array, index: int, noise: mx.array | None) -> mx.array:
        sigma, after = self._sigmas[index : index + 2]
        return latents + self._slope(said, latents, sigma) * (after - sigma)  # type: ignore[no-any-return]

    def _slope(self, said: mx.array, latents: mx.array, sigma: float) -> mx.array:
        match self._predicts:
            case "epsilon":
                return said
            case "v_prediction":
                picture = said * (-sigma / (sigma**2 + 1) ** 0.5) + latents / (sigma**2 + 1)
            case "sample":
                picture = said
            case other:
                raise refused(f"prediction_type {other!r}")
        return (latents - picture) / sigma  # type: ignore[no-any-return]


class _EulerAncestral(_Euler):
    original = "EulerAncestralDiscreteScheduler"
    draws = True

    def step(self, said: mx.array, latents: mx.array, index: int, noise: mx.array | None) -> mx.array:
        assert noise is not None, "its steps draw noise"
        sigma, after = self._sigmas[index : index + 2]
        added = (after**2 * (sigma**2 - after**2) / sigma**2) ** 0.5
        left = (after**2 - added**2) ** 0.5
        return latents + self._slope(said, latents, sigma) * (left - sigma) + noise * added  # type: ignore[no-any-return]


class _FlowEuler(Sampler):
    original = "FlowMatchEulerDiscreteScheduler"

    def __init__(self, config: Mapping[str, Any], count: int) -> None:
        super().__init__(config, count)
        if config.get("use_dynamic_shifting", False):
            raise refused("use_dynamic_shifting")
        if config.get("shift_terminal") or config.get("invert_sigmas", False) or config.get("stochastic_sampling"):
            raise refused("shift_terminal, invert_sigmas or stochastic_sampling")
        trained, shift = int(config.get("num_train_timesteps", 1000)), float(config.get("shift", 1.0))
        ends = _shifted(np.asarray([1.0, 1 / trained]), shift)
        sigmas = _shifted(np.linspace(ends[0], ends[1], count), shift).astype(np.float32)
        self.timesteps = (sigmas * trained).tolist()
        self._sigmas = [*sigmas.tolist(), 0.0]

    def noised(self, latents: mx.array, noise: mx.array, index: int) -> mx.array:
        return self._sigmas[index] * noise + (1 - self._sigmas[index]) * latents  # type: ignore[no-any-return]

    def step(self, said: mx.array, latents: mx.array, index: int, noise: mx.array | None) -> mx.array:
        return latents + (self._sigmas[index + 1] - self._sigmas[index]) * said  # type: ignore[no-any-return]


def _shifted(sigmas: Any, shift: float) -> Any:
    return shift * sigmas / (1 + (shift - 1) * sigmas)


SAMPLERS: Mapping[str, type[Sampler]] = {
    "ddim": _Ddim,
    "euler": _Euler,
    "euler-ancestral": _EulerAncestral,
    "flow-euler": _FlowEuler,
}
"""By what ``--scheduler`` calls them."""


def usual_sampler(config: Mapping[str, Any]) -> str:
    """The name of the sampler that a folder's scheduler is; of one that is not here Euler's, which reads its settings.

    Args:
        config: scheduler_config.json.
    """
    given = config.get("_class_name")
    return next((name for name, kind in SAMPLERS.items() if kind.original == given), "euler")


def make_sampler(name: str, config: Mapping[str, Any], count: int) -> Sampler:
    """A sampler with the settings of a folder's scheduler.

    Args:
        name: One of ``SAMPLERS``.
        config: scheduler_config.json.
        count: Steps.

    Raises:
        UsageError: The model is for a sampler of another kind, or has fewer training steps than are asked for.
        UnsupportedError: A setting is not computed here.
    """
    flows = str(config.get("_class_name", "")).startswith("FlowMatch")
    if flows != (name == "flow-euler"):
        able = [known for known in SAMPLERS if (known == "flow-euler") == flows]
        what = f"--scheduler {name}: this model was trained for {'flows' if flows else 'noise that is added'}"
        raise UsageError(what, hint=f"choose one of {', '.join(able)}")
    trained = int(config.get("num_train_timesteps", 1000))
    if count > trained:
        raise UsageError(f"--steps {count}: this model has {trained}", hint="20 to 50 are usual")
    return SAMPLERS[name](config, count)
