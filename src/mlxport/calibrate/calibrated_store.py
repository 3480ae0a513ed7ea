"""Finished units of a calibration in the unfinished output, so that an interrupted run goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlxport.output.atomic_files import replace_arrays, replace_json, replacing
from mlxport.source import hash_file
from mlxport.source.safetensors_file import read_safetensors
from mlxport.types import TensorRef

__all__ = ["FOLDER", "TOKENS", "Finished", "Store"]

FOLDER = "calibrated"
TOKENS = "tokens.npy"
_STATE = "state.json"


@dataclass(frozen=True)
class Finished:
    """One unit: its file, and what was found for each of its modules."""

    path: Path
    facts: Mapping[str, Mapping[str, Any]]

    def arrays(self) -> dict[str, mx.array]:
        """Packed weights, scales and biases by output name, lazily."""
        loaded: Any = mx.load(str(self.path))
        return dict(loaded)


class Store:
    """Files of finished units in ``folder``, and the state that vouches for them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.units: dict[str, Finished] = {}
        try:
            state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            state = {}
        self._state: dict[str, Any] = state if isinstance(state, dict) else {}
        for unit, entry in list(self._state.items()):
            path = self._path(unit)
            if path.is_file() and hash_file(path) == entry["sha256"]:
                self.units[unit] = Finished(path, entry["facts"])
            else:
                del self._state[unit]
        self.resumed = tuple(self.units)

    def _path(self, unit: str) -> Path:
        return self.folder / f"{unit}.safetensors"

    def save(self, unit: str, arrays: Mapping[str, mx.array], facts: Mapping[str, Mapping[str, Any]]) -> Finished:
        """Keep a finished unit, durably.

        Raises:
            DiskError: The disk is full.
        """
        path = self._path(unit)
        replace_arrays(path, arrays)
        self.units[unit] = Finished(path, dict(facts))
        self._state[unit] = {"sha256": hash_file(path), "facts": dict(facts)}
        replace_json(self.folder / _STATE, self._state)
        return self.units[unit]

    def save_tokens(self, tokens: mx.array) -> None:
        """Keep what the model wrote: a run that goes on must not depend on its writing the same again."""
        with replacing(self.folder / TOKENS) as file:
            np.save(file, np.array(tokens))

    def tokens(self) -> mx.array:
        """What was kept by ``save_tokens``."""
        return mx.array(np.load(self.folder / TOKENS))

    def refs(self) -> dict[str, TensorRef]:
        """Every finished tensor by output name."""
        return {name: ref for unit in self.units.values() for name, ref in read_safetensors(unit.path).items()}

    def facts(self) -> dict[str, Mapping[str, Any]]:
        """What was found, by module path."""
        return {path: facts for unit in self.units.values() for path, facts in unit.facts.items()}
