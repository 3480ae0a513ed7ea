"""What a verification hands back: frozen figures, how to print them and how to record them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from mlxport.layouts.left_out import parts_in_words
from mlxport.parity.generation_report import Generation
from mlxport.types import ModelPart

__all__ = ["Comparison", "Divergence", "FarAttention", "LayerError", "ParityReport", "Positions", "WeightCheck"]


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _verdict(passed: bool) -> str:
    return "ok" if passed else "FAILED"


@dataclass(frozen=True)
class Comparison:
    """Logits of two models on the same tokens.

    Attributes:
        name: What was compared with what.
        positions: Number of token positions compared.
        max_abs: Largest absolute difference of a logit.
        mean_abs: Mean absolute difference of the logits.
        relative: RMS of the difference over RMS of the reference, each row centred over the vocabulary.
        cosine_min: Smallest cosine of two (centred) logit rows.
        cosine_mean: Mean of these cosines.
        top1: Share of positions at which both have the same most likely token (ties within the error count as same).
        kl_mean: Mean Kullback-Leibler divergence of the reference from the output, nats per token.
        passed: Whether every threshold holds.
        thresholds: Figure name to its bound, as used.
        row: Name of the row of the tolerance table.
        reason: Why the bounds are what they are.
        failures: One sentence per bound that does not hold.
        warnings: One sentence per bound that does not hold and is reported only.
    """

    name: str
    positions: int
    max_abs: float
    mean_abs: float
    relative: float
    cosine_min: float
    cosine_mean: float
    top1: float
    kl_mean: float
    passed: bool
    thresholds: Mapping[str, float]
    row: str
    reason: str
    failures: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values only; figures that are not finite become null."""
        return _fields(self)

    def summary(self) -> str:
        """One line for a terminal."""
        return (
            f"{self.name}: max {_figure(self.max_abs)}, mean {_figure(self.mean_abs)}, "
            f"relative {_figure(self.relative)}, cosine {self.cosine_mean:.6f} "
            f"(min {self.cosine_min:.6f}), top-1 {self.top1:.1%}, KL {_figure(self.kl_mean)} nats, "
            + _verdict(self.passed)
        )


@dataclass(frozen=True)
class WeightCheck:
    """Stored tensors, dequantized and mapped back to the checkpoint's layout, against the checkpoint's own.

    Attributes:
        tensors: Number of tensors compared.
        worst: Name of the checkpoint tensor that differs most in relation to its bound.
        relative: RMS of its difference over its RMS.
        bound: What was allowed for it.
        passed: Whether every tensor is within its bound.
        failures: One sentence per tensor that is not (at most eight).
    """

    tensors: int
    worst: str
    relative: float
    bound: float
    passed: bool
    failures: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values only."""
        return _fields(self)

    def summary(self) -> str:
        """One line for a terminal."""
        return (
            f"stored weights vs original: {self.tensors} tensors, worst {self.worst} {_figure(self.relative)} "
            f"(bound {_figure(self.bound)}), {_verdict(self.passed)}"
        )


@dataclass(frozen=True)
class LayerError:
    """Relative error of the hidden state after one module; each side was fed its own activations."""

    module: str
    relative: float


@dataclass(frozen=True)
class Divergence:
    """The first module whose input agrees with the original's and whose output does not.

    Attributes:
        module: Path in the MLX model.
        reference_module: Path in the torch model.
        mlx_class: Class of the MLX module.
        torch_class: Class of the torch module.
        input_error: Relative error of the module's input.
        output_error: Relative error of the module's output.
        cause: The most probable cause, with its evidence.
    """

    module: str
    reference_module: str
    mlx_class: str
    torch_class: str
    input_error: float
    output_error: float
    cause: str

    def to_json(self) -> dict[str, Any]:
        """Plain values only."""
        return _fields(self)

    def summary(self) -> str:
        """What diverges and why, in one paragraph."""
        return (
            f"first diverging module: {self.module} ({self.mlx_class}; in torch {self.reference_module}, "
            f"{self.torch_class}): input error {_figure(self.input_error)}, output error "
            f"{_figure(self.output_error)}. {self.cause}"
        )


@dataclass(frozen=True)
class FarAttention:
    """One kind of attention at far positions, by the block that stands for it.

    Attributes:
        module: Path in the MLX model.
        reference_block: Path of the block in the torch model.
        proven: Up to which position it gives what the original gives.
        wrong_at: The first position at which it gives something else, None where there is none.
        error: How far it is off there: norm of the difference over norm of the original's.
        allowed: How far it might be.
        reason: Why nothing is proven beyond, where it is not for an error.
    """

    module: str
    reference_block: str
    proven: int
    wrong_at: int | None = None
    error: float = 0.0
    allowed: float = 0.0
    reason: str = ""


@dataclass(frozen=True)
class Positions:
    """Up to which position an output computes what its original does.

    Attributes:
        proven: Up to here, counted from 1.
        end: Up to where the output should: the length of its context, or less where the target is known to differ.
        kinds: One attention of each kind.
        reason: Why not all of it was probed.
    """

    proven: int
    end: int
    kinds: tuple[FarAttention, ...] = ()
    reason: str = ""

    @property
    def failures(self) -> tuple[str, ...]:
        """One sentence for each kind of attention that is wrong somewhere."""
        return tuple(
            f"position {kind.wrong_at}: {kind.module} gives something else than in the original's "
            f"{kind.reference_block} (relative error {_figure(kind.error)}, {_figure(kind.allowed)} allowed): "
            "look at the rope settings and windows in config.json"
            for kind in self.kinds
            if kind.wrong_at is not None
        )

    def summary(self) -> str:
        """One line for a terminal."""
        reasons = dict.fromkeys((self.reason, *(kind.reason for kind in self.kinds)))
        short = f" of {self.end}" if self.proven < self.end else ""
        why = "".join(f"; {reason}" for reason in reasons if reason)
        return f"proven up to position {self.proven}{short}{why}"


@dataclass(frozen=True)
class ParityReport:
    """The result of one verification.

    Attributes:
        mode: ``"full"`` or ``"layerwise"``.
        dtype: Floating dtype of the output's unquantized tensors (``bfloat16`` …).
        bits: Fewest bits of a quantized module of the output, None when nothing is quantized.
        tokens: Number of tokens run, all sequences together.
        comparisons: Logits against each reference.
        passed: Whether the output may be trusted.
        weights: Stored tensors against the checkpoint's, where the layout can be inverted.
        layers: Hidden-state errors, in execution order (``layerwise`` only).
        divergence: Where a failing output goes wrong.
        positions: Up to which position the output is proven, None where nothing was probed.
        notes: What a reader must know: how inputs were chosen, what was not covered.
        problems: What is wrong besides the model: files that changed since, another tokenizer.
        left_out: Parts of the original that are not in the output, which is its text model alone.
        generation: What text generated with caches showed, where the layout asks for that.
        seconds: Wall time.
    """

    mode: str
    dtype: str
    bits: int | None
    tokens: int
    comparisons: tuple[Comparison, ...]
    passed: bool
    weights: WeightCheck | None = None
    layers: tuple[LayerError, ...] = ()
    divergence: Divergence | None = None
    positions: Positions | None = None
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    left_out: tuple[ModelPart, ...] = ()
    generation: Generation | None = None
    seconds: float = field(default=0.0, compare=False)

    @property
    def alone(self) -> str:
        """What is to be said where the output is not the whole model; else empty."""
        return f"the text model alone, without {parts_in_words(self.left_out)}" if self.left_out else ""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Bounds that do not hold and are reported only."""
        return tuple(f"{c.name}: {w}" for c in self.comparisons for w in c.warnings)

    def to_json(self) -> dict[str, Any]:
        """Plain values only, for the record."""
        return _fields(self)

    def summary(self) -> str:
        """Lines for a terminal."""
        lines = [comparison.summary() for comparison in self.comparisons]
        if self.weights is not None:
            lines.append(self.weights.summary())
        lines += [f"warning: {line}" for line in self.warnings]
        if self.divergence is not None:
            lines.append(self.divergence.summary())
        lines += [f"wrong: {line}" for line in self.problems]
        if self.positions is not None:
            lines.append(self.positions.summary())
        if self.generation is not None:
            lines.append(self.generation.summary())
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes), *filter(None, [self.alone])])

    def failure_message(self) -> str:
        """What is wrong, for the error's message; empty when the output passed."""
        if self.passed:
            return ""
        computes = all(c.passed for c in self.comparisons) and (self.weights is None or self.weights.passed)
        computes = computes and not (self.positions and self.positions.failures)
        computes = computes and not (self.generation and self.generation.failures)
        lines = [
            "the output is not the original's" if computes else "the output does not compute what the original computes"
        ]
        lines += [f"{c.name}: {failure}" for c in self.comparisons for failure in c.failures]
        if self.weights is not None:
            lines += self.weights.failures
        if self.positions is not None:
            lines += self.positions.failures
        if self.generation is not None:
            lines += self.generation.failures
        if self.divergence is not None:
            lines.append(self.divergence.summary())
        lines += self.problems
        return "\n  ".join(lines)


def _fields(value: Any) -> dict[str, Any]:
    return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}


def _plain(value: Any) -> Any:
    """Dataclasses, mappings and tuples as JSON values."""
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if hasattr(value, "__dataclass_fields__"):
        return _fields(value)
    return value
