"""Measure a model: how much, on what, in how large a batch; and what follows for every setting of every module."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from mlxport.allocate.candidates import Candidate, not_running
from mlxport.allocate.damage import Array, Measurement, ProbeBatch, damages, token_divergences, weight_errors
from mlxport.allocate.probe import Calls, candidate_weights
from mlxport.allocate.written_tokens import Tokens, make_tokens
from mlxport.errors import MlxportError
from mlxport.model.lazy_parameters import LazyModel
from mlxport.model.tensors import computed_tensors
from mlxport.progress import Progress
from mlxport.source.tokenizer_files import embedding_rows
from mlxport.transform import Program, float32
from mlxport.types import Checkpoint, QuantSpec

__all__ = ["Damages", "Subject", "measure", "prepare"]

Damages = Mapping[str, Mapping[QuantSpec, float]]

# Settings of each module that are measured, on how many tokens, where that takes at most so many operations; at
# least the last. A module's others follow from the measured ones, and 64 tokens rank modules nearly as 2,048 do.
_LEVELS = ((3, 512, 1e11), (1, 512, 1e12), (1, 256, 1e12), (1, 128, 1e12), (1, 64, math.inf))
_PART_BYTES = 768 << 20  # of the widest activations of all parts of a batch, and of copies of them
_COPIES = 3
_STRIDES = (1, 2, 4)
_MOST_PARTS = 65
_ROUTED = 8  # experts of a token, where work is estimated


@dataclass
class Subject:
    """A model to measure.

    Attributes:
        checkpoint: The opened source.
        model: mlx-lm's model on placeholders; it becomes float32.
        program: From checkpoint tensors to its parameters.
        candidates: Modules that can be quantized.
        calls: How they are called.
        quantizer: How weights are rounded.
        progress: What to report to.
    """

    checkpoint: Checkpoint
    model: nn.Module
    program: Program
    candidates: Mapping[str, Candidate]
    calls: Calls
    quantizer: str
    progress: Progress

    def __post_init__(self) -> None:
        self._weights = candidate_weights(self.program, self.candidates)
        self._modules = {path: given.module for path, given in self.candidates.items()}

    def errors(self) -> tuple[Damages, Mapping[str, float]]:
        """The squared error of every setting, and the squared weights, of every module."""
        total = sum(given.nbytes(None) for given in self.candidates.values())
        self.progress.stage("measuring the error of every setting", total)
        errors, energy = {}, {}
        for path, given in self.candidates.items():
            errors[path], energy[path] = weight_errors(self._weights[path], given.specs, self.quantizer)
            self.progress.advance(given.nbytes(None))
        return errors, energy

    def read(self, count: int) -> tuple[Tokens, Tokens]:
        """About ``count`` tokens to measure on, and others to judge on; then the model is ready to be measured."""
        self.progress.stage("writing tokens to measure on", 0)
        found = make_tokens(self.checkpoint, self.model, self.program, self._vocabulary, count)
        prepare(self.model, self.program, self.candidates)
        return found

    @property
    def _vocabulary(self) -> int:
        shapes = {name: output.shape for name, output in self.program.outputs.items()}
        return embedding_rows(self.checkpoint.config, shapes) or 2

    def divergences(self, changes: Sequence[Mapping[str, QuantSpec]], tokens: Tokens, stage: str) -> list[Array]:
        """What each of several sets of roundings brings at every token, nats [sequences, compared tokens].

        Args:
            changes: Module path to setting.
            tokens: What is read.
            stage: What to call it where progress is shown.

        Raises:
            NumericsError: The original's activations are not finite; names the module.
            UnsupportedError: mlx-lm cannot run the model here.
        """

        def advance(change: Mapping[str, QuantSpec]) -> None:
            self.progress.advance(sum(self.candidates[path].nbytes(None) for path in change))

        total = sum(self.candidates[path].nbytes(None) for change in changes for path in change)
        self.progress.stage(stage, total)
        batch = _batch(self.candidates, tokens.ids, self._vocabulary, self.calls.last, len(changes) + 1)
        try:
            return token_divergences(self.model, self._modules, self._weights, batch, changes, self.quantizer, advance)
        except MlxportError:
            raise
        except Exception as error:  # third-party model code
            raise not_running(error) from error


def measure(subject: Subject, usual_bits: float) -> tuple[list[Damages], str, Tokens]:
    """The damage of every setting of every module, as predicted in one or several ways; how; and tokens to judge on.

    Args:
        subject: The model.
        usual_bits: About the bits that modules will get: there is measured.
    """
    candidates = subject.candidates
    errors, energy = subject.errors()
    settings, count = _level(candidates)
    tokens, judging = subject.read(count)
    wanted = [
        (path, spec) for path in subject.calls.order for spec in _references(candidates[path], settings, usual_bits)
    ]
    divergence: dict[str, dict[QuantSpec, float]] = {}
    found_here = subject.divergences([{p: s} for p, s in wanted], tokens, "measuring what rounding does to the output")
    for (path, spec), value in zip(wanted, found_here, strict=True):
        divergence.setdefault(path, {})[spec] = max(float(value.mean()), 0.0)
    several = f"{settings} settings" if settings > 1 else "1 setting"
    predictor = (
        f"divergence (KL) of the output when one module is rounded, measured at {several} a module on "
        f"{tokens.ids.size} tokens {tokens.origin}, other settings by the weights' squared error"
    )
    found: list[Damages] = [damages(Measurement(errors, divergence, energy))]
    if settings > 1:  # with each measured setting alone, too: which of them predicts best depends on the model
        for place in range(settings):
            one = {p: dict([list(given.items())[min(place, len(given) - 1)]]) for p, given in divergence.items()}
            found.append(damages(Measurement(errors, one, energy)))
    return found, predictor, judging


def _level(candidates: Mapping[str, Candidate]) -> tuple[int, int]:
    """Settings of a module to measure, and tokens to measure them on."""
    active = 0.0
    for given in candidates.values():
        experts = given.shape[0] if len(given.shape) > 2 else 1
        active += given.size * min(1.0, _ROUTED / experts)
    work = 2 * active * len(candidates)
    return next((settings, tokens) for settings, tokens, most in _LEVELS if work * settings * tokens <= most)


def _batch(candidates: Mapping[str, Candidate], ids: mx.array, vocabulary: int, last: str, wanted: int) -> ProbeBatch:
    """As many parts at once as memory holds and are wanted; of a large vocabulary rather fewer tokens than parts."""
    head = last if last in candidates and candidates[last].shape[0] == vocabulary else ""
    shapes = [given.shape for path, given in candidates.items() if given.shape[0] != vocabulary]
    widest = max((shape[1] * _ROUTED if len(shape) > 2 else shape[0] for shape in shapes), default=1)
    for stride in _STRIDES if head else (1,):
        entries = ids.size * max(widest, vocabulary // stride)
        parts = min(wanted, _MOST_PARTS, _PART_BYTES // (_COPIES * 4 * entries))
        if parts >= min(wanted, _MOST_PARTS // 2):
            break
    return ProbeBatch(ids, max(2, parts), head, stride)


def _references(given: Candidate, settings: int, usual_bits: float) -> list[QuantSpec]:
    """The settings to measure: those nearest to the usual bits, in groups of 64 where these divide the columns."""
    group = next(size for size in (64, 32, 128) if any(spec.group_size == size for spec in given.specs))
    near = sorted((s for s in given.specs if s.group_size == group), key=lambda s: (abs(s.bits - usual_bits), s.bits))
    return sorted(near[:settings], key=lambda s: s.bits)


def prepare(model: nn.Module, program: Program, candidates: Mapping[str, Candidate]) -> None:
    """Give the model its parameters, but the weights of the candidates; all in float32."""
    model.set_dtype(mx.float32)
    own = {f"{path}.weight" for path in candidates}
    LazyModel(model, computed_tensors(program), lambda _, array: float32(array)).fill(skip=own)
