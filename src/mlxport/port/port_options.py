"""What the user gives to ``port_folder``: the options that it has in common with ``convert``, and its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxport.convert.options import PORTED, SharedOptions
from mlxport.options.option_field import option, refined
from mlxport.options.size_spec import SizeSpec
from mlxport.quant import MODES

if TYPE_CHECKING:
    from mlxport.layouts.generated.weights_trace import GeneratedConversion

__all__ = ["PortOptions"]

_AFFINE, *_FORMATS = MODES
_BITS = " ".join(str(bits) for bits in sorted(MODES[_AFFINE].bits))


@dataclass(frozen=True, kw_only=True)
class PortOptions(SharedOptions):
    """What the user gives to ``port_folder``."""

    dtype: str = refined(
        SharedOptions, "dtype", doc="``auto`` (the module's own), ``float32``, ``float16`` or ``bfloat16``."
    )
    quantize: int | str | bool | None = refined(
        SharedOptions,
        "quantize",
        help=f"Bits ({_BITS}), {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}; alone: {MODES[_AFFINE].bits[0]}.",
        doc="As in ``convert``: bits, a mode, a mixed recipe, True for 4 bits, or None.",
    )
    recipe: str | Path | None = refined(
        SharedOptions, "recipe", help="A TOML file of rules.", doc="A TOML file of rules."
    )
    dynamic: bool | Any = refined(SharedOptions, "dynamic")
    dynamic_shapes: str | None = option(
        None,
        'Sizes that are free, said by hand: "x: B, 3, H*32, W*32".',
        doc='Which sizes of the inputs are free, in the place of ``dynamic``: ``"x: B, 3, H*32, W*32; mask: B, L"``; a '
        "name is free, a number fixed, ``_`` as the module allows, as is what is not named.",
        check=SizeSpec.parse,
        panel=PORTED,
    )
    verify: str = refined(SharedOptions, "verify", help="auto or none.", doc="``auto`` or ``none``.")
    dry_run: bool = refined(
        SharedOptions,
        "dry_run",
        help="Capture and plan; write nothing.",
        doc="Capture and plan only; nothing is written.",
    )
    on_port: Callable[[GeneratedConversion], None] = option(
        lambda _: None, doc="Called with the emitted port before anything is written.", in_python_only=True
    )
