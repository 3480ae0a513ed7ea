"""What gives sound: a folder that is open, sound or what stands for it in, sound out; one class a kind of model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mlxport.errors import UsageError
from mlxport.run.media.made_voice import made_voice
from mlxport.run.media.sound import Samples, read_channels
from mlxport.run.tasks.array_files import ARRAYS
from mlxport.run.tasks.pipeline import Difference
from mlxport.run.tasks.task_options import AudioOptions

__all__ = ["HeardExample", "SoundModel", "apart"]


@dataclass(frozen=True)
class HeardExample:
    """A sound that a model is compared with its original on.

    Attributes:
        samples: float32, [channels, samples], at the model's rate.
        count: Codebooks to use, of a codec.
    """

    samples: Samples
    count: int = 0


class SoundModel(ABC):
    """A model that gives a sound again.

    Attributes:
        between: What it makes of a sound on the way, under which name results have it and the option that writes it.
        rate: Samples a second.
        channels: Of its sounds.
    """

    between: ClassVar[str]
    rate: int
    channels: int

    def hear(self, given: Any, options: AudioOptions) -> dict[str, Any]:
        """The result for an input: ``audio`` and ``sampling_rate``, and for a sound what is between.

        Args:
            given: A sound, the ``.npy`` of what is between, or a dict that holds it.
            options: What was asked for.
        """
        if isinstance(given, Mapping) or (not isinstance(given, np.ndarray) and str(given).lower().endswith(ARRAYS)):
            target = getattr(options, self.between)
            if target is not None and target != str(given):
                what = f"--{self.between} writes what a sound becomes, and the input is that"
                raise UsageError(what, hint=f"leave --{self.between} out")
            return {"audio": self.given_back(given, options), "sampling_rate": self.rate}
        return self.sound_again(read_channels(given, self.rate, self.channels), options)

    @abstractmethod
    def sound_again(self, samples: Samples, options: AudioOptions) -> dict[str, Any]:
        """The result for a sound [channels, samples]."""

    @abstractmethod
    def given_back(self, given: Any, options: AudioOptions) -> Samples:
        """The sound of a file, or a dict, of what is between."""

    @abstractmethod
    def write_between(self, path: Path, result: Mapping[str, Any]) -> None:
        """Write what a sound became to a file."""

    @abstractmethod
    def examples(self) -> list[HeardExample]:
        """Sounds to compare the model with its original on."""

    @abstractmethod
    def compared(self, example: HeardExample) -> dict[str, Any]:
        """The result for an example."""

    @abstractmethod
    def difference(self, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Difference:
        """How far a result is from the original's."""

    def made(self, seconds: float, seed: int) -> Samples:
        """A voice of this rate and number of channels."""
        return np.stack([made_voice(seconds, self.rate, seed + channel) for channel in range(self.channels)])


def apart(what: str, ours: Samples, theirs: Samples) -> Difference:
    """How far two arrays are apart, over the largest number of the second."""
    if ours.shape != theirs.shape:
        return Difference(what, 0.0, f"{what} {list(ours.shape)} where the original has {list(theirs.shape)}")
    scale = max(float(np.abs(theirs).max(initial=0)), 1e-12)
    return Difference(what, float(np.abs(ours - theirs).max(initial=0)) / scale)
