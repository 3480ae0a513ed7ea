"""What hears: a folder that is open, samples in, text out; each kind of model has one of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

from mlxport.errors import UsageError
from mlxport.run.media.sound import Samples
from mlxport.run.tasks.described import load_described
from mlxport.run.tasks.task_options import SpeechOptions

__all__ = ["Recognizer", "feature_extractor"]


class Recognizer(ABC):
    """A model that writes what is said.

    Attributes:
        refused: Options that it has no use for, with why.
        reference: What transformers' pipeline is called with beside a sound, for a comparison.
        model: Its module.
        rate: Samples a second that it hears.
        spelled: How options were given, where not by the flags of their names.
    """

    refused: ClassVar[Mapping[str, str]] = {}
    reference: Mapping[str, Any] = {}
    spelled: Mapping[str, str] = {}
    model: Any
    rate: int

    @abstractmethod
    def hear(self, samples: Samples, options: SpeechOptions, show: bool) -> dict[str, Any]:
        """The result for a recording.

        Args:
            samples: At its rate.
            options: What was asked for.
            show: Whether to show a bar for a long recording on standard error.
        """

    def compared(self, samples: Samples) -> dict[str, Any]:
        """The result for a recording that is compared with the original's."""
        return self.hear(samples, SpeechOptions(), False)

    def check(self, options: SpeechOptions) -> None:
        """Refuse what this model has no use for.

        Raises:
            UsageError: It was asked for.
        """
        for item in fields(options):
            why = self.refused.get(item.name)
            if why and getattr(options, item.name) != item.default:
                given = self.flag(item.name)
                raise UsageError(f"{given} {getattr(options, item.name)}: {why}", hint=f"leave {given} out")

    def flag(self, name: str) -> str:
        """What an option is called in an error: as it was given."""
        return self.spelled.get(name, f"--{name.replace('_', '-')}")


def feature_extractor(folder: Path) -> Any:
    """Transformers' own, of the files beside a model.

    Raises:
        SourceError: There is none, or it does not load.
    """
    from transformers import AutoFeatureExtractor

    return load_described(
        folder, "the feature extractor", "sound is prepared",
        lambda: AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=False, local_files_only=True),
    )  # fmt: skip
