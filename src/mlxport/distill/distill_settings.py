"""What a distillation is asked to do, and what it hands back."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mlxport.errors import QuantizationError
from mlxport.quant import QuantRequest, linear_modes

__all__ = ["DistillReport", "DistillSettings"]

_TARGET_BYTES = 512 * 8  # of a token: see targets


@dataclass(frozen=True, slots=True)
class DistillSettings:
    """How to train.

    Attributes:
        steps: Most updates of each parameter.
        rate: Learning rate, in steps from one code of a group to the next (``params``).
        batch: Sequences of an update.
        length: Tokens of a sequence.
        sequences: Most different sequences to train on.
        held_out: Sequences that are kept from training, to measure on.
        patience: Measurements without improvement after which training ends.
        seed: Of everything that is random.
    """

    steps: int
    rate: float = 0.02
    batch: int = 4
    length: int = 256
    sequences: int = 256
    held_out: int = 16
    patience: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            message = f"--distill {self.steps}: expected a positive number of steps"
            raise QuantizationError(message, hint="100 is a good start; leave it out for none")

    def check(self, quant: QuantRequest | None) -> None:
        """Refuse what has no scales and biases to train.

        Raises:
            QuantizationError: Nothing is quantized, or in formats without biases only.
        """
        if quant is None or not quant.any_linear:
            message = f"--distill {self.steps} trains scales and biases of {linear_modes()} modules, and here are none"
            raise QuantizationError(message, hint="add -q 4, or leave it out")

    def disk_bytes(self, largest_shard: int, parameters: int) -> int:
        """What is on the disk meanwhile: the original's predictions, the training's state, a shard written anew."""
        return largest_shard + parameters // 2 + (self.sequences + self.held_out) * self.length * _TARGET_BYTES

    @property
    def every(self) -> int:
        """Steps from one measurement to the next."""
        return max(5, self.steps // 10)


@dataclass(frozen=True, slots=True)
class DistillReport:
    """What a distillation did.

    Attributes:
        steps: Updates that were made.
        way: ``whole``, or ``block by block`` where a model did not fit in memory.
        original: The same of how the original was run.
        before: Mean KL divergence of the original from the output on the held-out text, nats a token.
        after: The same afterwards; never more.
        tokens: Tokens that were trained on, each counted once.
        source: Where the text is from.
        ended: Why training ended.
        modules: Paths of the changed modules.
    """

    steps: int
    way: str
    original: str
    before: float
    after: float
    tokens: int
    source: str
    ended: str
    modules: tuple[str, ...] = ()

    @property
    def improved(self) -> bool:
        """Whether anything was changed."""
        return self.after < self.before

    def to_json(self) -> dict[str, Any]:
        """Plain values only."""
        return asdict(self)

    def summary(self) -> str:
        """One line for a terminal."""
        change = f"{self.before:.4g} → {self.after:.4g}" if self.improved else f"{self.before:.4g}, kept as it was"
        return (
            f"distilled ({self.way}, original {self.original}): KL {change} nats a token on held-out text, "
            f"{self.steps} steps ({self.ended}), {self.tokens:,} tokens {self.source}"
        )
