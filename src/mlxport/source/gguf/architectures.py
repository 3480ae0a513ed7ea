"""What llama.cpp calls the tensors of an architecture, and what transformers calls them, as data."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mlxport.errors import UnsupportedError
from mlxport.source.gguf.header import ORIGINAL, GgufHeader, GgufTensor
from mlxport.source.gguf.rows import as_values, slices
from mlxport.types import TensorRef

__all__ = ["ARCHITECTURES", "GgufArchitecture", "IN_CONFIG", "architecture_of", "named_tensors"]

Metadata = Mapping[str, Any]

IN_CONFIG = ("rope_freqs", "rope_factors_long", "rope_factors_short")
"""Tensors that say what config.json says."""

_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}
_DENSE = {
    **_ATTENTION,
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_FUSED = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
}
_FOUR_NORMS = {
    **_DENSE,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_EXPERTS = {
    **_ATTENTION,
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.N.gate_proj",
    "ffn_up_exps": "mlp.experts.N.up_proj",
    "ffn_down_exps": "mlp.experts.N.down_proj",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
_MIXTRAL = {
    **_ATTENTION,
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.experts.N.w1",
    "ffn_up_exps": "block_sparse_moe.experts.N.w3",
    "ffn_down_exps": "block_sparse_moe.experts.N.w2",
}
_STARCODER = {**_DENSE, "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}


@dataclass(frozen=True)
class GgufArchitecture:
    """An architecture of llama.cpp's as transformers has it.

    Attributes:
        model_type: Of transformers.
        classes: Its class.
        layer: What follows ``blk.N.`` to what follows ``model.layers.N.``; a capital N counts the experts of a stack.
        turned: Whether rows of queries and keys are in the order of llama.cpp's rope.
        norms_less: What is subtracted from the weights of norms.
        fields: Of config.json, by metadata under the architecture's name; None where a key says nothing.
        more: Other fields, of all metadata and the names of the tensors.
    """

    model_type: str
    classes: str
    layer: Mapping[str, str]
    turned: bool = False
    norms_less: float = 0.0
    fields: Mapping[str, str] = field(default_factory=dict)
    more: Callable[[Metadata, frozenset[str]], dict[str, Any]] = lambda metadata, names: {}


def _biased(metadata: Metadata, names: frozenset[str]) -> dict[str, Any]:
    return {
        "attention_bias": "blk.0.attn_q.bias" in names,
        "mlp_bias": "blk.0.ffn_gate.bias" in names,
    }


def _query_scale(layers: int) -> Callable[[Metadata, frozenset[str]], dict[str, Any]]:
    """Gemma's largest models scale queries by their width over their heads; files do not say so (llama.cpp neither)."""

    def more(metadata: Metadata, names: frozenset[str]) -> dict[str, Any]:
        def of(key: str) -> Any:
            return metadata.get(f"{metadata['general.architecture']}.{key}")

        if of("block_count") == layers:
            return {"query_pre_attn_scalar": of("embedding_length") // of("attention.head_count")}
        return {"query_pre_attn_scalar": of("attention.key_length")} if of("attention.key_length") else {}

    return more


_EXPERT_FIELDS = {
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
}
_GEMMA_FIELDS = {"attention.sliding_window": "sliding_window"}

ARCHITECTURES: Mapping[str, GgufArchitecture] = {
    "llama": GgufArchitecture("llama", "LlamaForCausalLM", _DENSE, turned=True, more=_biased),
    "mixtral": GgufArchitecture(
        "mixtral", "MixtralForCausalLM", _MIXTRAL, turned=True,
        fields={"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"},
    ),
    "qwen2": GgufArchitecture("qwen2", "Qwen2ForCausalLM", _DENSE),
    "qwen2moe": GgufArchitecture("qwen2_moe", "Qwen2MoeForCausalLM", _EXPERTS, fields=_EXPERT_FIELDS),
    "qwen3": GgufArchitecture("qwen3", "Qwen3ForCausalLM", _DENSE),
    "qwen3moe": GgufArchitecture(
        "qwen3_moe", "Qwen3MoeForCausalLM", _EXPERTS, fields=_EXPERT_FIELDS,
        more=lambda metadata, names: {"norm_topk_prob": True},
    ),
    "gemma": GgufArchitecture("gemma", "GemmaForCausalLM", _DENSE, norms_less=1.0),
    "gemma2": GgufArchitecture(
        "gemma2", "Gemma2ForCausalLM", _FOUR_NORMS, norms_less=1.0, more=_query_scale(46),
        fields={
            **_GEMMA_FIELDS,
            "attn_logit_softcapping": "attn_logit_softcapping",
            "final_logit_softcapping": "final_logit_softcapping",
        },
    ),
    "gemma3": GgufArchitecture(
        "gemma3_text", "Gemma3ForCausalLM", _FOUR_NORMS, norms_less=1.0, more=_query_scale(62), fields=_GEMMA_FIELDS
    ),
    "phi3": GgufArchitecture("phi3", "Phi3ForCausalLM", _FUSED, fields=_GEMMA_FIELDS),
    "starcoder2": GgufArchitecture("starcoder2", "Starcoder2ForCausalLM", _STARCODER, fields=_GEMMA_FIELDS),
}  # fmt: skip
"""``general.architecture`` to how it is read; mixtral's files say llama, and count experts."""


def architecture_of(header: GgufHeader) -> GgufArchitecture:
    """How a file's architecture is read.

    Raises:
        UnsupportedError: It is none of those; names it.
    """
    name = header.architecture
    if name == "llama" and header.metadata.get("llama.expert_count"):
        name = "mixtral"
    if name not in ARCHITECTURES:
        raise UnsupportedError(
            f"{header.path}: the architecture {name!r} is not read from GGUF; read are "
            f"{', '.join(sorted(ARCHITECTURES))}",
            hint=ORIGINAL,
        )
    return ARCHITECTURES[name]


def named_tensors(header: GgufHeader, architecture: GgufArchitecture, heads: tuple[int, int]) -> dict[str, TensorRef]:
    """Every tensor under the name that transformers gives it, as numbers.

    Args:
        header: Of the file, with the tensors of all its parts.
        architecture: How it is read.
        heads: Of queries, of keys.

    Raises:
        UnsupportedError: A tensor has a name that this architecture does not have.
    """
    found: dict[str, TensorRef] = {}
    for tensor in header.tensors:
        if tensor.name.removesuffix(".weight") in IN_CONFIG:
            continue
        for name, part in _named(tensor, architecture, header):
            norm = name.endswith("norm.weight")
            turned = heads[tensor.name.split(".")[-2] == "attn_k"] if _is_turned(tensor, architecture) else 0
            found[name] = as_values(name, part, heads=turned, less=architecture.norms_less if norm else 0.0)
    return found


def _is_turned(tensor: GgufTensor, architecture: GgufArchitecture) -> bool:
    return architecture.turned and tensor.name.split(".")[-2] in ("attn_q", "attn_k")


def _named(tensor: GgufTensor, architecture: GgufArchitecture, header: GgufHeader) -> Iterator[tuple[str, GgufTensor]]:
    match = re.fullmatch(r"(?:blk\.(?P<layer>\d+)\.)?(?P<name>[\w.]+?)(?P<end>\.weight|\.bias)", tensor.name)
    table = architecture.layer if match is not None and match["layer"] else _OUTER
    if match is None or match["name"] not in table:
        raise UnsupportedError(
            f"{header.path}: the tensor {tensor.name} is none of {header.architecture}'s that are known",
            hint=ORIGINAL,
        )
    known = table[match["name"]]
    name = (f"model.layers.{match['layer']}.{known}" if match["layer"] else known) + match["end"]
    if ".N." in known:
        for number, part in enumerate(slices(tensor)):
            yield name.replace(".N.", f".{number}."), part
        return
    if known == "mlp.shared_expert_gate" and len(tensor.shape) == 1:
        tensor = replace(tensor, shape=(1, *tensor.shape))
    yield name, tensor
