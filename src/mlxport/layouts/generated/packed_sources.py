"""Checkpoints whose weights are packed already: the generated layout reads none of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlxport.errors import UnsupportedError

__all__ = ["refuse_quantized"]


def refuse_quantized(config: Mapping[str, Any], where: str) -> None:
    """Refuse weights that are packed: transformers' model has other parameters then, and MLX's packing is another.

    Args:
        config: The checkpoint's, without a block that its weights do not have.
        where: What to call it in the error.

    Raises:
        UnsupportedError: They are quantized.
    """
    if config.get("quantization_config"):
        raise UnsupportedError(
            f"{where}: the weights are quantized already, which the generated layout does not read",
            hint="start from the unquantized checkpoint",
        )
