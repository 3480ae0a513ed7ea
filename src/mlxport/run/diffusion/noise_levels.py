"""How much noise a model was trained with at each of its steps, and at which of these it is asked.

As diffusers computes it (https://github.com/huggingface/diffusers, src/diffusers/schedulers).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mlxport.errors import UnsupportedError

__all__ = ["kept_shares", "refused", "spaced_steps"]

Floats = npt.NDArray[np.float32]
_ZERO_SNR = 2.0**-24  # what is kept at the last step where nothing is, so that nothing is divided by zero


def refused(what: str) -> UnsupportedError:
    """What is said of a setting of a scheduler that is not computed here."""
    return UnsupportedError(
        f"the scheduler's settings ask for {what}, which is not computed here", hint="choose another with --scheduler"
    )


def kept_shares(config: Mapping[str, Any]) -> Floats:
    """What is kept of a picture at each training step, as a share of its variance: ``alphas_cumprod``, [steps].

    Args:
        config: Settings of a scheduler of diffusers.

    Raises:
        UnsupportedError: Noise grows in a way that is not known.
    """
    kept = np.cumprod(np.float32(1) - _betas(config), dtype=np.float32)
    return _without_signal_at_the_end(kept) if config.get("rescale_betas_zero_snr", False) else kept


def _betas(config: Mapping[str, Any]) -> Floats:
    """Noise that each training step adds."""
    count = int(config.get("num_train_timesteps", 1000))
    if (trained := config.get("trained_betas")) is not None:
        return np.asarray(trained, np.float32)
    first, last = float(config.get("beta_start", 0.0001)), float(config.get("beta_end", 0.02))
    match config.get("beta_schedule", "linear"):
        case "linear":
            return np.linspace(first, last, count, dtype=np.float32)
        case "scaled_linear":
            return np.square(np.linspace(first**0.5, last**0.5, count, dtype=np.float32))
        case "squaredcos_cap_v2":
            left = [math.cos((i / count + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(count + 1)]
            return np.asarray([min(1 - left[i + 1] / left[i], 0.999) for i in range(count)], np.float32)
        case other:
            raise refused(f"beta_schedule {other!r}")


def _without_signal_at_the_end(kept: Floats) -> Floats:
    """Shares moved so that the last step keeps nothing (https://arxiv.org/abs/2305.08891, algorithm 1)."""
    root = np.sqrt(kept)
    moved = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    found = (moved**2).astype(np.float32)
    found[-1] = _ZERO_SNR
    return found  # type: ignore[no-any-return]


def spaced_steps(config: Mapping[str, Any], count: int, spacing: str, whole: bool) -> Floats:
    """The training steps at which the model is asked, from the noisiest on, [count].

    Args:
        config: Settings of a scheduler of diffusers.
        count: How many.
        spacing: Where the settings do not say it.
        whole: Whether they are whole numbers where they are spread evenly over all.

    Raises:
        UnsupportedError: They are spaced in a way that is not known.
    """
    trained, offset = int(config.get("num_train_timesteps", 1000)), int(config.get("steps_offset", 0))
    match config.get("timestep_spacing", spacing):
        case "linspace":
            steps = np.linspace(0, trained - 1, count)
            return np.asarray((steps.round() if whole else steps)[::-1], np.float32)
        case "leading":
            return np.asarray((np.arange(count) * (trained // count))[::-1] + offset, np.float32)
        case "trailing":
            return np.asarray(np.arange(trained, 0, -trained / count).round() - 1, np.float32)
        case other:
            raise refused(f"timestep_spacing {other!r}")
