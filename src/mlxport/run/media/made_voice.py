"""A sound to compare models on: tones that slide, with breath between them."""

from __future__ import annotations

import numpy as np

from mlxport.run.media.sound import Samples

__all__ = ["made_voice"]


def made_voice(seconds: float, rate: int, seed: int) -> Samples:
    """Samples of so many seconds; ``seed`` chooses pitch and breath."""
    time = np.arange(int(seconds * rate)) / rate
    pitch = 110 + 40 * np.sin(2 * np.pi * (1.3 + seed) * time)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    tone = sum(np.sin(phase * k) / k for k in (1, 2, 3, 5))
    noise = np.random.default_rng(seed).standard_normal(len(time))
    loud = np.clip(np.sin(2 * np.pi * 2.1 * time), 0, 1)
    return np.asarray(0.3 * tone * loud + 0.02 * noise, np.float32)
