"""What mlx-vlm calls the tensors of each model type, and how its config is to be said, as data.

The names are those of mlx-vlm 0.7 (``models/TYPE/``); what a family does not list is refused, not passed on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlxport.layouts.mlx_vlm import config_mending as rules
from mlxport.layouts.mlx_vlm.config_mending import ConfigRule
from mlxport.layouts.mlx_vlm.picture_tokens import (
    USUAL_PICTURE,
    PictureAsked,
    PictureRule,
    PictureTokens,
    cropped,
    in_place,
    in_rows,
    pooled,
    tiled,
)
from mlxport.layouts.mlx_vlm.processor_mending import ProcessorRule, llava_by_transformers
from mlxport.source.processor_files import picture_settings

__all__ = ["FAMILIES", "Family", "family_of", "picture_of"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One model type.

    Attributes:
        picture: What a picture of some size becomes.
        renames: Beginnings of names in a checkpoint to those in mlx-vlm; the first that fits counts.
        tower: What the names of everything but the language model begin with, in mlx-vlm.
        channels_last: Endings of names in mlx-vlm of convolutions, whose second axis goes last.
        shifted: Names in mlx-vlm of weights to which it adds nothing, where transformers adds one.
        uncast: Endings of names in mlx-vlm of what keeps the dtype that it has.
        computed: Names in a checkpoint of what mlx-vlm computes itself.
        text: What the names of the language model's layers and embeddings begin with, in mlx-vlm.
        head: What the output layer is called in mlx-vlm; it is left out where the embeddings stand for it.
        own_head: Whether mlx-vlm has that layer even so: then it is a copy of the embeddings.
        both_ways: Whether the tokens of a picture attend to each other in both directions, which mlx-vlm leaves out.
        config: What is done to the config, in this order.
        processor: What is done to the processor's files; None leaves them as they are.
    """

    picture: PictureRule
    renames: tuple[tuple[str, str], ...]
    tower: tuple[str, ...] = ("vision_tower.",)
    channels_last: tuple[str, ...] = ("vision_tower.patch_embed.proj.weight",)
    shifted: str = ""
    uncast: tuple[str, ...] = ()
    computed: str = r".*(?:rotary_emb\.inv_freq|position_ids)"
    text: str = "language_model.model."
    head: str = "language_model.lm_head.weight"
    own_head: bool = False
    both_ways: bool = False
    config: tuple[ConfigRule, ...] = ()
    processor: ProcessorRule | None = None

    @property
    def embeddings(self) -> str:
        """What the embeddings of tokens are called in mlx-vlm."""
        return f"{self.text}embed_tokens.weight"

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
        picture=in_place,
        renames=_QWEN_VL,
        config=(
            rules.text_at_the_root,
            rules.sections_of_rope("", "mrope"),
            rules.vision_named(model_type),
            rules.only(("", "hidden_act"), "silu"),
            rules.only(("vision_config", "hidden_act"), vision_act),
            rules.no_windows,
        ),
    )


_QWEN3_5 = Family(
    picture=in_place,
    renames=_QWEN_VL,
    channels_last=("vision_tower.patch_embed.proj.weight", ".conv1d.weight"),
    shifted=r"language_model\.model\.(?:layers\.\d+\.(?:input_layernorm|post_attention_layernorm|self_attn\.[qk]_norm)|norm)"
    r"\.weight",
    uncast=(".A_log",),
    computed=r".*(?:rotary_emb\.inv_freq|position_ids)|mtp\..*",
    config=(
        rules.said_in_full,
        rules.kept_rope("default"),
        rules.every_nth_in_full("full_attention_interval"),
        rules.vision_named("qwen3_5"),
        rules.only(("text_config", "hidden_act"), "silu"),
        rules.only(("text_config", "attention_bias"), False),
        rules.only(("vision_config", "hidden_act"), "gelu_pytorch_tanh"),
    ),
)

_QWEN3_VL = Family(
    picture=in_place,
    renames=_QWEN_VL,
    config=(
        rules.said_in_full,
        rules.sections_of_rope("text_config", "default"),
        rules.vision_named("qwen3_vl"),
        rules.only(("text_config", "hidden_act"), "silu"),
        rules.only(("text_config", "attention_bias"), False),
        rules.only(("vision_config", "hidden_act"), "gelu_pytorch_tanh"),
    ),
)

# A tower, a language model and what is between them, each under its own name, inside a ``model`` or not.
_JOINED = (
    ("model.language_model.", "language_model.model."),
    ("language_model.", "language_model."),
    ("lm_head.", "language_model.lm_head."),
    ("model.vision_tower.vision_model.", "vision_tower.vision_model."),
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("vision_tower.vision_model.", "vision_tower.vision_model."),
    ("vision_tower.", "vision_tower.vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("multi_modal_projector.", "multi_modal_projector."),
)
_SEES = Family(
    picture=cropped,
    renames=_JOINED,
    tower=("vision_tower.", "multi_modal_projector."),
    channels_last=("vision_tower.vision_model.embeddings.patch_embedding.weight",),
)
_AS_LLAMA = (
    rules.heads_of_usual_size,
    rules.only(("text_config", "hidden_act"), "silu"),
    rules.only(("text_config", "attention_bias"), False),
    rules.only(("text_config", "mlp_bias"), False),
)

_LLAVA = replace(
    _SEES,
    processor=llava_by_transformers,
    config=(
        rules.said_in_full,
        rules.text_named("llama", "qwen2"),
        rules.plain_rope("linear"),
        *_AS_LLAMA,
        rules.only(("vision_config", "model_type"), "clip_vision_model"),
        rules.only(("vision_config", "hidden_act"), "quick_gelu"),
        rules.one_layer_of_features,
        rules.only(("", "projector_hidden_act"), "gelu"),
        rules.only(("", "multimodal_projector_bias"), True),
    ),
)

_GEMMA3 = replace(
    _SEES,
    picture=pooled,
    own_head=True,
    both_ways=True,
    config=(
        rules.said_in_full,
        rules.text_named("gemma3_text"),
        rules.rope_of_windows,
        rules.every_nth_in_full("sliding_window_pattern"),
        rules.picture_tokens_with_text,
        rules.only(("text_config", "hidden_activation"), "gelu_pytorch_tanh"),
        rules.only(("text_config", "attention_bias"), False),
        rules.only(("text_config", "use_bidirectional_attention"), False),
        rules.only(("text_config", "attn_logit_softcapping"), None),
        rules.only(("text_config", "final_logit_softcapping"), None),
        rules.only(("", "tie_word_embeddings"), True),
        rules.only(("vision_config", "model_type"), "siglip_vision_model"),
        rules.only(("vision_config", "hidden_act"), "gelu_pytorch_tanh"),
    ),
)

_IDEFICS3 = Family(
    picture=tiled,
    renames=(
        ("model.text_model.", "language_model."),
        ("model.vision_model.", "vision_model."),
        ("model.connector.", "connector."),
        ("lm_head.", "language_model.lm_head."),
    ),
    tower=("vision_model.", "connector."),
    channels_last=("vision_model.embeddings.patch_embedding.weight",),
    text="language_model.",
    own_head=True,
    config=(
        rules.said_in_full,
        rules.text_named("llama"),
        rules.plain_rope(),
        *_AS_LLAMA,
        rules.only(("vision_config", "hidden_act"), "gelu_pytorch_tanh"),
    ),
)

_MISTRAL3 = replace(
    _SEES,
    picture=in_rows,
    channels_last=("vision_tower.vision_model.patch_conv.weight",),
    config=(
        rules.said_in_full,
        rules.by_text(mistral=rules.plain_rope(), ministral3=rules.kept_rope("yarn")),
        rules.no_windows_at_all,
        rules.one_layer_of_features,
        rules.only(("text_config", "hidden_act"), "silu"),
        rules.only(("vision_config", "model_type"), "pixtral"),
        rules.only(("vision_config", "hidden_act"), "silu"),
        rules.only(("", "projector_hidden_act"), "gelu"),
    ),
)

FAMILIES: Mapping[str, Family] = {
    "qwen2_vl": _qwen_vl("qwen2_vl", "quick_gelu"),
    "qwen2_5_vl": _qwen_vl("qwen2_5_vl", "silu"),
    "qwen3_vl": _QWEN3_VL,
    "qwen3_5": _QWEN3_5,
    "gemma3": _GEMMA3,
    "llava": _LLAVA,
    "idefics3": _IDEFICS3,
    "smolvlm": _IDEFICS3,
    "mistral3": _MISTRAL3,
}
"""By ``model_type``."""


def picture_of(
    config: Mapping[str, Any], files: Mapping[str, Path], size: tuple[int, int] = USUAL_PICTURE
) -> PictureTokens | None:
    """What a picture becomes, None of what is no family of ours.

    Args:
        config: Of a checkpoint, or of what was made of it.
        files: The files beside it, by name.
        size: Rows and columns of the picture's pixels.

    Raises:
        SourceError: A file that describes the processor is no JSON object.
        ConfigError: A size that is wanted is not said.
        UsageError: The processor takes no such picture.
    """
    family = family_of(config)
    return None if family is None else family.picture(PictureAsked(*size, config, *picture_settings(files)))


def family_of(config: Mapping[str, Any]) -> Family | None:
    """The family of a config that describes a vision part; None where there is none of ours."""
    known = FAMILIES.get(str(config.get("model_type")))
    return known if known is not None and isinstance(config.get("vision_config"), Mapping) else None
