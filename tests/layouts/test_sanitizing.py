"""The original's folder loads in mlx-lm through the model.py that a conversion wrote, and so do converted weights."""

from __future__ import annotations

import contextlib
import io
import json
from functools import partial
from types import SimpleNamespace

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
import torch
import transformers
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model
from safetensors.torch import load_file, save_file

from checkpoints import write_tokenizer
from mlxport.layouts.generated.language_model import traced_language_model
from mlxport.layouts.generated.sanitizing import prove, sanitize_source
from mlxport.quant import QuantRequest
from mlxport.source import open_checkpoint
from mlxport.transform import trace
from mlxport.types import QuantSpec

IDS = [[5, 40, 31, 7, 30], [9, 8, 7, 6, 5]]
WIDTHS = dict(vocab_size=64, bos_token_id=None, eos_token_id=None, pad_token_id=None)


def mixtral():
    """Experts that are stored one by one, under other names."""
    return transformers.MixtralConfig(
        **WIDTHS, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=3, num_experts_per_tok=2, max_position_embeddings=64,
    )  # fmt: skip


def gpt2(inner=96):
    """Matrices that are stored the other way round, under the same names."""
    return transformers.GPT2Config(**WIDTHS, n_embd=32, n_layer=2, n_head=4, n_inner=inner, n_positions=64)


def deepseek():
    """A matrix of which two weights are made, in each layer."""
    return transformers.DeepseekV3Config(
        **WIDTHS, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, q_lora_rank=32, kv_lora_rank=64, qk_rope_head_dim=16, qk_nope_head_dim=32,
        v_head_dim=48, n_routed_experts=4, n_shared_experts=1, n_group=1, topk_group=1, num_experts_per_tok=2,
        moe_intermediate_size=64, first_k_dense_replace=1, max_position_embeddings=64,
    )  # fmt: skip


def saved(config, folder):
    """A random model as transformers saves it."""
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(folder)
    write_tokenizer(folder, 64)
    return model


def ported_beside(folder):
    """The port's notes; its source is put beside the original's weights, and nothing else is changed."""
    return traced_beside(folder).plain.notes


def traced_beside(folder):
    """The port itself."""
    traced = traced_language_model(open_checkpoint(folder))
    for name, text in traced.plain.source_files.items():
        (folder / name).write_text(text)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_file": "model.py"}))
    return traced


def agrees(folder, model, tolerance=1e-5):
    """Whether mlx-lm computes what the original computes."""
    with torch.no_grad():
        wanted = model(torch.tensor(IDS)).logits.numpy()
    found = np.array(load_model(folder, trust_remote_code=True)[0](mx.array(IDS)))
    return np.abs(found - wanted).max() < tolerance * np.abs(wanted).max() + tolerance


def converted_by_mlx_lm(folder, to, **options):
    with contextlib.redirect_stdout(io.StringIO()):
        mlx_lm.convert(str(folder), str(to), trust_remote_code=True, **options)


@pytest.mark.parametrize("config", [mixtral, gpt2])
def test_original_and_what_mlx_lm_makes_of_it_load(tmp_path, config):
    model = saved(config(), tmp_path / "hf")
    assert not any("sanitize" in note for note in ported_beside(tmp_path / "hf"))
    assert agrees(tmp_path / "hf", model)
    converted_by_mlx_lm(tmp_path / "hf", tmp_path / "mlx", dtype="float32")
    assert agrees(tmp_path / "mlx", model)  # the same sanitize lets the port's own names and layouts pass
    converted_by_mlx_lm(tmp_path / "hf", tmp_path / "q8", quantize=True, q_bits=8, q_group_size=32, dtype="float32")
    assert agrees(tmp_path / "q8", model, 0.05) and not agrees(tmp_path / "q8", model, 1e-5)


def test_experts_are_stacked_in_a_loop_and_routers_take_8_bits(tmp_path):
    saved(mixtral(), tmp_path / "hf")
    traced = traced_beside(tmp_path / "hf")
    source = (tmp_path / "hf" / "model.py").read_text()
    method = source[source.index("def sanitize") :]
    assert method.count("for i in range(len(self.model.layers)):") == 1 and "for e in range(3)" in method
    converted_by_mlx_lm(tmp_path / "hf", tmp_path / "q4", quantize=True, q_bits=4, q_group_size=32)
    theirs = json.loads((tmp_path / "q4" / "config.json").read_text())["quantization"]
    assert theirs["model.layers.1.mlp.gate"] == {"group_size": 64, "bits": 8} and theirs["bits"] == 4
    assert traced.conversion(QuantRequest(QuantSpec("affine", 4, 32))).config["quantization"] == theirs


def test_latents_are_remembered_and_multiplied_as_in_mlx_lms_own_code(tmp_path):
    model = saved(deepseek(), tmp_path / "hf")
    sides = [load_model(tmp_path / "hf")[0]]
    ported_beside(tmp_path / "hf")
    sides.append(load_model(tmp_path / "hf", trust_remote_code=True)[0])
    theirs, ours = ({n: a for n, a in tree_flatten(side.parameters()) if "self_attn" in n} for side in sides)
    assert theirs.keys() == ours.keys() and all(mx.array_equal(theirs[name], ours[name]) for name in ours)
    caches = [make_prompt_cache(side) for side in sides]
    for ids in (mx.array(IDS), mx.array(IDS)[:, :1]):
        theirs, ours = (side(ids, cache=cache) for side, cache in zip(sides, caches, strict=True))
        assert mx.allclose(theirs, ours, atol=1e-5)
    assert [layer.keys.shape[1:] + layer.values.shape[1:] for layer in caches[1]] == [(1, 256, 64, 1, 256, 16)] * 2
    assert sum(layer.nbytes for layer in caches[0]) == sum(layer.nbytes for layer in caches[1])
    converted_by_mlx_lm(tmp_path / "hf", tmp_path / "q8", quantize=True, q_bits=8, q_group_size=32, dtype="float32")
    assert agrees(tmp_path / "q8", model, 0.05) and not agrees(tmp_path / "q8", model, 1e-5)


def test_names_without_the_base_models_and_what_is_left_out(tmp_path):
    model = saved(gpt2(), tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}
    tensors |= {f"h.{layer}.attn.masked_bias": torch.tensor(-1e4) for layer in range(2)}
    save_file(tensors, file, {"format": "pt"})
    ported_beside(tmp_path)
    assert agrees(tmp_path, model)


def test_a_long_table_that_is_stored_nowhere(tmp_path):
    """No half of a method is written: a note says that the file loads converted weights only."""
    config = transformers.XGLMConfig(
        **WIDTHS | dict(pad_token_id=1), d_model=32, ffn_dim=48, num_layers=1, attention_heads=4,
        max_position_embeddings=64,
    )  # fmt: skip
    saved(config, tmp_path)
    (note,) = [note for note in ported_beside(tmp_path) if "sanitize" in note]
    assert "numbers is stored nowhere" in note and "def sanitize" not in (tmp_path / "model.py").read_text()


def test_layers_of_other_sizes_under_the_same_names(tmp_path):
    def cut(arrays):
        made = {}
        for layer, heads in ((0, 2), (1, 3), (2, 3)):
            whole = arrays[f"layers.{layer}.both.weight"].reshape(heads, 4, -1)
            made |= {f"layers.{layer}.first.weight": whole[:, :1], f"layers.{layer}.second.weight": whole[:, 1:]}
        return made

    sizes = {f"layers.{layer}.both.weight": torch.randn(4 * heads, 6) for layer, heads in ((0, 2), (1, 3), (2, 3))}
    save_file(sizes, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    program = trace(cut, open_checkpoint(tmp_path).tensors)
    text = sanitize_source(program, (), mx.float32)
    assert "if i == 0:" in text and "if i in (1, 2):" in text and text.count("weights.pop(") == 2
    namespace = {"mx": mx}
    exec(text, namespace)
    prove(partial(namespace["sanitize"], SimpleNamespace(layers=range(3))), program, mx.float32)
