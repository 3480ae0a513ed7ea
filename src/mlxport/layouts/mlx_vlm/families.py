"""What mlx-vlm calls the tensors of each model type, and how its config is to be said, as data.

The names are those of mlx-vlm 0.7 (``models/TYPE/``); what a family does not list is refused, not passed on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mlxport.layouts.mlx_vlm import config_mending as rules

__all__ = ["FAMILIES", "Family", "family_of"]

ConfigRule = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One model type.

    Attributes:
        renames: Beginnings of names in a checkpoint to those in mlx-vlm; the first that fits counts.
        tower: What the names of everything but the language model begin with, in mlx-vlm.
        channels_last: Names in mlx-vlm of convolutions, whose second axis goes last.
        computed: Names in a checkpoint of what mlx-vlm computes itself.
        head: What the output layer is called in mlx-vlm; it is left out where the embeddings stand for it.
        config: What is done to the config, in this order.
    """

    renames: tuple[tuple[str, str], ...]
    tower: tuple[str, ...] = ("vision_tower.",)
    channels_last: tuple[str, ...] = ("vision_tower.patch_embed.proj.weight",)
    computed: str = r".*(?:rotary_emb\.inv_freq|position_ids)"
    head: str = "language_model.lm_head.weight"
    config: tuple[ConfigRule, ...] = ()

    def name(self, original: str) -> str | None:
        """What mlx-vlm calls a tensor; None for what it computes itself.

        Raises:
            KeyError: It has no place for it.
        """
        if re.fullmatch(self.computed, original):
            return None
        for old, new in self.renames:
            if original.startswith(old):
                return new + original.removeprefix(old)
        raise KeyError(original)

    def is_tower(self, name: str) -> bool:
        """Whether a module or tensor of mlx-vlm is no part of the language model."""
        return name.startswith(self.tower)


# Saved by transformers 4 and 5, and as transformers 5 calls them in memory.
_QWEN_VL = (
    ("model.language_model.", "language_model.model."),
    ("model.visual.", "vision_tower."),
    ("visual.", "vision_tower."),
    ("lm_head.", "language_model.lm_head."),
    ("model.", "language_model.model."),
)


def _qwen_vl(model_type: str, vision_act: str) -> Family:
    """A Qwen of pictures whose language model is Qwen2, by the activation of its vision part."""
    return Family(
        renames=_QWEN_VL,
        config=(
            rules.text_at_the_root,
            rules.sections_of_rope,
            rules.vision_named(model_type),
            rules.only(("text", "hidden_act"), "silu"),
            rules.only(("vision_config", "hidden_act"), vision_act),
            rules.no_windows,
        ),
    )


FAMILIES: Mapping[str, Family] = {
    "qwen2_vl": _qwen_vl("qwen2_vl", "quick_gelu"),
    "qwen2_5_vl": _qwen_vl("qwen2_5_vl", "silu"),
}
"""By ``model_type``."""


def family_of(config: Mapping[str, Any]) -> Family | None:
    """The family of a config that describes a vision part; None where there is none of ours."""
    known = FAMILIES.get(str(config.get("model_type")))
    return known if known is not None and isinstance(config.get("vision_config"), Mapping) else None
