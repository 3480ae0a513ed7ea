"""What a model may be converted to, and the exact bytes of each, by the rules that ``convert`` applies."""

from __future__ import annotations

from dataclasses import dataclass, field

import mlx.nn as nn
from mlx.utils import tree_flatten

from mlxport.errors import QuantizationError
from mlxport.layouts.quantizing import Built, quantize
from mlxport.quant import MIXED, QuantRequest, make_request, named_modes, plain_bits

__all__ = ["Setting", "SettingWeights", "measure", "settings"]


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the plan: a value of ``--quantize``, or None for none."""

    quantize: str | None

    def name(self, dtype: str) -> str:
        """What to call it, given the dtype of what is not quantized."""
        if self.quantize is None:
            return dtype
        return f"{self.quantize} bits" if self.quantize.isdecimal() else self.quantize

    def request(self) -> QuantRequest | None:
        """As ``convert`` reads it."""
        return make_request(self.quantize)


def settings() -> tuple[Setting, ...]:
    """Everything that ``convert -q`` takes, and no quantization."""
    return tuple(map(Setting, (None, *map(str, reversed(plain_bits())), *named_modes(), *MIXED)))


@dataclass(frozen=True)
class SettingWeights:
    """The weights under one setting.

    Attributes:
        nbytes: Bytes of all tensors, on disk and in memory.
        read: Bytes that generating one token reads.
        problem: Why this setting cannot apply to this model, empty where it can.
    """

    nbytes: int = 0
    read: int = 0
    problem: str = ""
    tensors: dict[str, int] = field(default_factory=dict, repr=False)


def measure(model: nn.Module, setting: Setting, shares: dict[str, float]) -> SettingWeights:
    """What ``convert`` would write with ``setting``; the model is left as it was.

    Args:
        model: mlx-lm's model, not quantized; nothing of it is evaluated.
        setting: The setting.
        shares: Parameter name to the share of it that one token reads.
    """
    request = setting.request()
    leaves = model.leaf_modules()
    try:
        if request is not None:
            quantize(model, {}, request, Built({}))
        sizes = {name: array.nbytes for name, array in tree_flatten(model.parameters())}
    except QuantizationError as error:
        return SettingWeights(problem=error.message)
    except Exception as error:  # an architecture's own rules, which mlx-lm lets decide: one row, not the plan
        return SettingWeights(problem=f"mlx-lm cannot: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
    finally:
        model.update_modules(leaves)
    if request is not None and sizes == {name: array.nbytes for name, array in tree_flatten(model.parameters())}:
        return SettingWeights(problem="no module of this model supports it")
    read = sum(int(size * _share(name, shares)) for name, size in sizes.items())
    return SettingWeights(sum(sizes.values()), read, tensors=sizes)


def _share(name: str, shares: dict[str, float]) -> float:
    """That of the parameter, or for the scales and biases of a quantized one that of its weight."""
    return shares.get(name, shares.get(f"{name.rpartition('.')[0]}.weight", 1.0))
