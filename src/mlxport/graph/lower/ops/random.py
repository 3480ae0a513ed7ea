"""Random numbers: refused by name, because no port can repeat the numbers that torch draws."""

from __future__ import annotations

from typing import Any

from mlxport.graph.lower.registry import UnsupportedOp, op

DRAWING = """
    rand.default rand_like.default randn.default randn_like.default randperm.default
    randint.default randint.low randint_like.default randint_like.Tensor randint_like.low_dtype
    bernoulli.default bernoulli.p bernoulli.Tensor binomial.default multinomial.default poisson.default
    normal.Tensor_float normal.float_Tensor normal.Tensor_Tensor normal.float_float normal_functional.default
    uniform.default exponential.default geometric.default cauchy.default log_normal.default
    random.default random.from random.to
"""


@op(*(f"aten.{key}" for key in DRAWING.split()))
def drawing(**arguments: Any) -> Any:
    """Nothing: numbers to be drawn have to be an input of the module."""
    raise UnsupportedOp("random: MLX draws other numbers than torch; let the module take them as an input")
