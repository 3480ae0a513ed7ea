"""What was chosen for each module, and why it fits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mlxport.types import QuantSpec

__all__ = ["AllocationReport", "Choice", "recipe_text"]

_LAYER = re.compile(r"^(?:.*?\.)?(\d+)\.(.+)$")


@dataclass(frozen=True, slots=True)
class Choice:
    """What one module gets.

    Attributes:
        path: Module path.
        spec: Its setting, None where it stays as it is.
        nbytes: What it stores.
        damage: What it is expected to add to the divergence, nats per token.
        weights: Number of weights.
    """

    path: str
    spec: QuantSpec | None
    nbytes: int
    damage: float
    weights: int

    @property
    def place(self) -> tuple[str, str]:
        """Layer (empty for embeddings and heads) and kind: ``("3", "mlp.down_proj")``."""
        match = _LAYER.match(self.path)
        return (match[1], match[2]) if match else ("", self.path.removeprefix("model."))

    def short(self) -> str:
        """``4/64``: bits and group size, or ``keep``."""
        return f"{self.spec.bits}/{self.spec.group_size}" if self.spec else "keep"


@dataclass(frozen=True)
class AllocationReport:
    """The settings that were chosen under a limit.

    Attributes:
        target: The limit, as it was asked for.
        measure: What the limit counts: weight files, tensors, or a machine's memory for the GPU.
        limit_bytes: The most of that.
        used_bytes: What the choice takes of that.
        bits_per_weight: Stored bits divided by parameters, as mlx-lm reports it.
        predictor: How damage was predicted.
        damage: Sum of what the modules are expected to add to the divergence, nats per token.
        exact: Whether no other choice within the limit has less predicted damage.
        choices: Every module that can be quantized.
        quantizer: How scales and biases are chosen.
        memory: For a machine: its name, the context, and bytes of weights, cache, workspace and of what it has.
        notes: Remarks.
        judging: Tokens that no bits were chosen with, int32 [sequences, length]; None where nothing was chosen.
    """

    target: str
    measure: str
    limit_bytes: int
    used_bytes: int
    bits_per_weight: float
    predictor: str
    damage: float
    exact: bool
    choices: tuple[Choice, ...]
    quantizer: str
    memory: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    judging: Any = field(default=None, repr=False, compare=False)

    def measured(self, damage: float, words: str) -> AllocationReport:
        """The same with what the whole output does as it was written: what follows choosing bits changes it.

        Args:
            damage: Divergence of the output, nats per token; modules keep their shares of it.
            words: What was done, and measured.
        """
        share = damage / self.damage if self.damage else 0.0
        choices = tuple(replace(choice, damage=choice.damage * share) for choice in self.choices)
        return replace(self, damage=damage, choices=choices, predictor=f"{self.predictor}; {words}")

    def recipe(self) -> str:
        """The choice as a file that ``--recipe`` takes; empty where nothing is quantized."""
        specs = {choice.path: choice.spec for choice in self.choices}
        return recipe_text(specs, self.target, self.quantizer) if any(specs.values()) else ""

    def to_json(self) -> dict[str, Any]:
        """Plain values only."""
        return {
            "target": self.target,
            "measure": self.measure,
            "limit_bytes": self.limit_bytes,
            "used_bytes": self.used_bytes,
            "bits_per_weight": round(self.bits_per_weight, 4),
            "predictor": self.predictor,
            "predicted_damage": float(f"{self.damage:.4g}"),
            "exact": self.exact,
            "quantizer": self.quantizer,
            "memory": dict(self.memory),
            "modules": {
                choice.path: {
                    "bits": choice.spec.bits if choice.spec else None,
                    "group_size": choice.spec.group_size if choice.spec else None,
                    "bytes": choice.nbytes,
                    "predicted_damage": float(f"{choice.damage:.4g}"),
                }
                for choice in self.choices
            },
            "notes": list(self.notes),
        }


def recipe_text(specs: Mapping[str, QuantSpec | None], target: str, quantizer: str) -> str:
    """The choice as a file that ``--recipe`` takes; the same settings in the same order.

    Args:
        specs: Module path to its setting, None to keep it.
        target: What it was made for.
        quantizer: How scales and biases are chosen; the format has no field for it.
    """
    lines = [
        f"# made for {target}",
        f"# mlxport convert SRC DST --recipe recipe.toml --quantizer {quantizer}",
    ]
    for path, spec in specs.items():
        value = f"{{ bits = {spec.bits}, group_size = {spec.group_size} }}" if spec else '"keep"'
        lines.append(f'"{path}" = {value}')
    return "\n".join(lines) + "\n"
