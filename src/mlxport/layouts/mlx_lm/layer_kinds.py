"""What mlx-lm's architectures take for granted about the order and the kinds of their layers.

Some know layers only as "every n-th has full attention", others look for the first layer of a kind and fail, often
only once there is a cache, where no layer is of that kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from mlxport.layouts.mlx_lm.config_view import MISSING, ConfigSection

Demand = tuple[str, Callable[[ConfigSection], bool]]

# every spelling of a kind of layer, among them those of mlx-lm and of older configs
_SPELLINGS: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "full_attention": frozenset({"full_attention", "attention", "*"}),
        "linear_attention": frozenset({"linear_attention", "mamba", "M"}),
        "sliding_attention": frozenset({"sliding_attention"}),
        "conv": frozenset({"conv"}),
    }
)


def kinds(view: ConfigSection) -> list[str]:
    """Return the kind of each layer, nothing where the config does not say."""
    for name in ("layer_types", "layers_block_type", "hybrid_override_pattern"):
        if found := view.get(name):
            return list(found)
    return []


def period(view: ConfigSection) -> Any:
    """Return n where every n-th layer, and no other, is the one with full attention; MISSING where there is no n."""
    found = kinds(view)
    if "full_attention" not in found:
        return MISSING
    every = found.index("full_attention") + 1
    full = [(index + 1) % every == 0 for index in range(len(found))]
    return every if full == [kind == "full_attention" for kind in found] else MISSING


def all_slide(view: ConfigSection) -> bool:
    """Say whether no layer has full attention, as where there are fewer layers than the pattern has."""
    return set(kinds(view)) == {"sliding_attention"}


def period_within(view: ConfigSection) -> Any:
    """As `period`, for code that asks the n-th layer for its cache: where all slide, the last has full attention."""
    return len(kinds(view)) if all_slide(view) else period(view)


def _repeats(view: ConfigSection) -> bool:
    return not kinds(view) or period(view) is not MISSING


def _repeats_or_slides(view: ConfigSection) -> bool:
    return _repeats(view) or all_slide(view)


def needs(*wanted: str, field: str = "layer_types") -> Demand:
    """Demand one layer of each kind, where the config says what layers there are."""

    def kept(view: ConfigSection) -> bool:
        found = set(kinds(view))
        return not found or all(found & _SPELLINGS[kind] for kind in wanted)

    return f"{field} must have {' and '.join(wanted)}", kept


def _every_fourth(view: ConfigSection) -> bool:
    """Say whether layers have rope and chunks except every fourth."""
    for name, without in (("no_rope_layers", (0, False)), ("layer_types", ("full_attention",))):
        found = view.get(name) or ()
        if any((kind in without) != (index % 4 == 3) for index, kind in enumerate(found)):
            return False
    return True


def _window_where_it_slides(view: ConfigSection) -> bool:
    return not kinds(view) or (view.get("sliding_window") is None) == ("sliding_attention" not in kinds(view))


REPEATS: Final[Demand] = (
    "layer_types must have full_attention in every n-th layer and in no other: it knows them only by that n",
    _repeats,
)
REPEATS_OR_SLIDES: Final[Demand] = (REPEATS[0], _repeats_or_slides)
FOURTH: Final[Demand] = (
    "layer_types must be chunked_attention, with rope, but in every fourth layer full_attention, without",
    _every_fourth,
)
WINDOW: Final[Demand] = (
    "layer_types must have sliding_attention where sliding_window is set, and only there: rope depends on that",
    _window_where_it_slides,
)
FULL: Final[Demand] = needs("full_attention")
BOTH: Final[Demand] = needs("full_attention", "sliding_attention")
