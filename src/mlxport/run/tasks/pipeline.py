"""What every task has in common: a folder that is open, inputs in, results as transformers' pipelines return them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mlxport.errors import SourceError, UsageError
from mlxport.run.tasks.task_options import RunOptions
from mlxport.source.jsonfile import read_object

__all__ = ["Difference", "Pipeline", "as_numpy", "compare_texts", "quiet"]

Array = npt.NDArray[Any]


def quiet(count: int) -> None:
    """Nobody is told how many inputs are done."""


@dataclass(frozen=True)
class Difference:
    """How far a result is from the original's.

    Attributes:
        what: What was compared, in a few words.
        error: Largest difference, relative to the largest value of the original's.
        wrong: What differs beyond numbers (another label, another text); empty where nothing does.
    """

    what: str
    error: float
    wrong: str = ""


class Pipeline(ABC):
    """A converted model, ready for one task.

    Called with one input it returns what transformers' pipeline of the same name returns for it, with a list a list.

    Attributes:
        task: Its name, as Hugging Face names tasks.
        reads: What an input is: ``text``, ``picture`` or ``sound``.
        tokenizes: Whether it reads or writes texts.
        options: The class of its options.
        also: Options without which a run says little, as an example of the command line.
        also_in_python: The same in Python.
        returns: What a call from Python gives, in words.
        also_runs: Tasks of other folders that it runs too, since what it reads of their models is the same.
        folder: The model's.
        config: Its config.json.
        model: Its module.
        shows: Whether what takes long has a bar on standard error.
        spelled: How options were given, by their names in Python, where not by the flags of these names.
    """

    task: ClassVar[str]
    reads: ClassVar[str]
    tokenizes: ClassVar[bool] = True
    options: ClassVar[type[RunOptions]]
    also: ClassVar[str] = ""
    also_in_python: ClassVar[str] = ""
    returns: ClassVar[str] = "what transformers'\npipeline of the same name does"
    also_runs: ClassVar[tuple[str, ...]] = ()
    shows: bool = False
    spelled: Mapping[str, str] = {}

    def __init__(self, folder: Path, *, trust_remote_code: bool = False) -> None:
        self.folder = folder
        self.trust_remote_code = trust_remote_code
        self.config = read_object(folder / "config.json", SourceError, unique=False)
        self.model = self._model()

    def __call__(self, inputs: Any, *, on_done: Callable[[int], object] = quiet, **given: Any) -> Any:
        """The result for an input, or those for a list of inputs.

        Args:
            inputs: What ``reads`` says, or a list of it.
            on_done: Called with the number of inputs that are finished since the last call.
            **given: Fields of ``options``.

        Raises:
            UsageError: An input cannot be read, or an option does not exist.
        """
        options = self.checked(given)
        several = isinstance(inputs, (list, tuple))
        results = self.run(self.gathered(inputs, options) if several else [inputs], options, on_done)
        if not several:
            results = [self.alone(results[0], options)]
        self.write(results, options)
        return results if several else results[0]

    def gathered(self, inputs: Sequence[Any], options: Any) -> list[Any]:
        """All inputs, those that options name too."""
        return list(inputs)

    def alone(self, result: Any, options: Any) -> Any:
        """What is returned for an input that is no list."""
        return result

    def write(self, results: Sequence[Any], options: Any) -> list[str]:
        """Write results to the files that options name; the names of these."""
        return []

    def target_needed(self, options: Any) -> str:
        """The option that is to name a file where standard output is a terminal; empty where results can be shown."""
        return ""

    def as_bytes(self, result: Any) -> bytes:
        """What standard output gets of a result that is no text."""
        raise NotImplementedError(f"{self.task} gives text")

    def plain(self, result: Any) -> Any:
        """A result as JSON can hold it."""
        return result

    @classmethod
    def checked(cls, given: Mapping[str, Any]) -> RunOptions:
        """The options of this task, of what was given.

        Raises:
            UsageError: One does not exist, or has a value that cannot be.
        """
        known = [item.name for item in fields(cls.options)]
        if unknown := [name for name in given if name not in known]:
            asked, *flags = (f"--{name.replace('_', '-')}" for name in (unknown[0], *known))
            raise UsageError(f"{asked} is not an option of {cls.task}", hint=f"it takes {', '.join(flags)}")
        return cls.options(**given)

    def _model(self) -> Any:
        from mlxport.layouts.generated.loading import load_port

        return load_port(self.folder, trust_remote_code=self.trust_remote_code)

    @abstractmethod
    def run(self, inputs: Sequence[Any], options: Any, on_done: Callable[[int], object]) -> list[Any]:
        """The result for each input, in their order."""

    @abstractmethod
    def lines(self, inputs: Sequence[Any], results: Sequence[Any], options: Any) -> Iterator[str]:
        """Results as lines of plain text."""

    @classmethod
    def batched(cls, count: int, size: int) -> Iterator[slice]:
        """Slices of at most ``size`` of ``count`` inputs."""
        return (slice(start, min(start + size, count)) for start in range(0, count, size))

    @abstractmethod
    def examples(self) -> list[Any]:
        """Inputs to compare this model with its original on."""

    @abstractmethod
    def compare(self, ours: Any, theirs: Any) -> Difference:
        """How the result for an example differs from what transformers' pipeline says."""

    def answer(self, example: Any) -> Any:
        """The result for an example."""
        return self(example)

    def reference(self, pipeline: Callable[..., Any], example: Any) -> Any:
        """What transformers' pipeline says of an example."""
        return pipeline(self.for_reference(example))

    def for_reference(self, example: Any) -> Any:
        """An example as transformers' pipeline takes it."""
        return example


def compare_texts(ours: str, theirs: str) -> Difference:
    """Whether two texts are the same."""
    return Difference("text", 0.0, "" if ours == theirs else f"{ours!r} where the original writes {theirs!r}")


def as_numpy(value: mx.array) -> Array:
    """An output as float32."""
    return np.array(value.astype(mx.float32))
