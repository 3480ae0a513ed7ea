"""Quantization: modes, and recipes that give each module one.

Imports: errors, types, source.
"""

from mlxport.quant.modes import (
    DEFAULT_MODE,
    MODES,
    Mode,
    is_linear,
    level,
    linear_modes,
    make_spec,
    named_modes,
    plain_bits,
)
from mlxport.quant.recipes import MIXED, QUANTIZERS, QuantRequest, Rule, make_request, parse_recipe, read_recipe

__all__ = [
    "DEFAULT_MODE",
    "MIXED",
    "MODES",
    "QUANTIZERS",
    "Mode",
    "QuantRequest",
    "Rule",
    "is_linear",
    "level",
    "linear_modes",
    "make_request",
    "make_spec",
    "named_modes",
    "parse_recipe",
    "plain_bits",
    "read_recipe",
]
