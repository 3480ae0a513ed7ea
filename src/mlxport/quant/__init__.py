"""Quantization: modes, and recipes that give each module one.

Imports: errors, types.
"""

from mlxport.quant.modes import MODES, Mode, make_spec
from mlxport.quant.recipes import MIXED, QUANTIZERS, QuantRequest, Rule, make_request, parse_recipe, read_recipe

__all__ = [
    "MIXED",
    "MODES",
    "QUANTIZERS",
    "Mode",
    "QuantRequest",
    "Rule",
    "make_request",
    "make_spec",
    "parse_recipe",
    "read_recipe",
]
