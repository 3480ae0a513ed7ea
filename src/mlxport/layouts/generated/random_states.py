"""The generators of random numbers, left as they were: a port's making and checking is none of the caller's."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import numpy as np
import torch

__all__ = ["random_states_kept"]


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Put back the states of torch's, MLX's, NumPy's and Python's generators at the end."""
    state: Any = mx.random.state
    keys = [mx.array(key) for key in state]
    theirs, arrays, python = torch.random.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        for key, kept in zip(state, keys, strict=True):
            key[:] = kept
        torch.random.set_rng_state(theirs)
        np.random.set_state(arrays)
        random.setstate(python)
