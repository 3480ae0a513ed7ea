"""GGUF files: read under the names of transformers, block by block the numbers that others read of them."""

from __future__ import annotations

import json
import re
import struct
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers

import mlxport
from checkpoints import config, weights
from gguf_files import K_TYPES, as_converted, packed, write_gguf
from mlxport.errors import SourceError, UnsupportedError, WeightsError
from mlxport.source import open_checkpoint, read_rows
from mlxport.source.gguf.kinds import KINDS
from mlxport.types import TensorRef

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
GROUPS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
CONFIG = config(rope_theta=50000.0)


def numbers(ref: TensorRef, start: int = 0, stop: int | None = None) -> np.ndarray:
    kind = {"F32": np.float32, "F16": np.float16}[ref.dtype]
    return read_rows(ref, start, stop).view(kind).reshape(-1, *ref.shape[1:])


def llama(path: Path, kind: str, **options: Any) -> Path:
    tensors = as_converted(weights(), "llama", CONFIG)
    return write_gguf(path, "llama", CONFIG, tensors, lambda name: "F32" if "norm" in name else kind, **options)


# --- blocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*GROUPS, *K_TYPES])
def test_blocks_are_the_numbers_that_llama_cpp_reads(kind):
    number = gguf.GGMLQuantizationType[kind]
    blocks = packed(np.random.default_rng(1).standard_normal((6, 512), np.float32), kind)
    expected = gguf.quants.dequantize(blocks, number)
    known = KINDS[int(number)]
    assert known.name == kind and known.values is not None
    found = known.values(blocks.reshape(-1, known.nbytes)).reshape(expected.shape)
    assert np.abs(expected).max() > 1e-3 and np.array_equal(found, expected)


@pytest.mark.parametrize("kind", GROUPS)
def test_blocks_that_mlx_has_are_kept_without_loss(kind, tmp_path):
    """Codes, scales and biases in the output's file stand for the very numbers of the file."""
    import mlx.core as mx

    source = llama(tmp_path / "model.gguf", kind)
    report = mlxport.convert(source, tmp_path / "out", verify="none")
    assert any("nothing is rounded" in note for note in report.notes)
    held: dict[str, Any] = mx.load(str(tmp_path / "out/model.safetensors"))
    block = json.loads((tmp_path / "out/config.json").read_text())["quantization"]
    assert block == {"group_size": 32, "bits": KINDS[int(gguf.GGMLQuantizationType[kind])].bits, "mode": "affine"}
    for name, ref in open_checkpoint(source).tensors.items():
        stem = name.removesuffix(".weight")
        if f"{stem}.scales" in held:
            scales, biases = (held[f"{stem}.{part}"] for part in ("scales", "biases"))
            assert scales.dtype == biases.dtype == mx.float16
            wide = [part.astype(mx.float32) for part in (scales, biases)]
            whole = mx.dequantize(held[name], *wide, group_size=32, bits=block["bits"])
            assert np.array_equal(np.array(whole), numbers(ref)), name
    assert f"{stem}.scales" in held


def test_a_file_of_several_types_keeps_each(tmp_path):
    """What llama.cpp calls Q4_K_M is a mixture; what MLX has no groups for comes out as numbers."""
    shapes = config(hidden_size=256, intermediate_size=256, num_attention_heads=4, head_dim=64, rope_theta=50000.0)
    tensors = {
        name: np.resize(array, [256 if size in (64, 128, 32) else size for size in array.shape])
        for name, array in as_converted(weights(), "llama", CONFIG).items()
    }
    for name in tensors:
        if ".attn_k." in name or ".attn_v." in name:
            tensors[name] = tensors[name][:128]
    kinds = {"attn_q": "Q4_K", "attn_v": "Q6_K", "ffn_down": "Q5_K", "ffn_up": "Q4_0", "output": "Q8_0"}

    def kind(name: str) -> str:
        return "F32" if "norm" in name else kinds.get(name.split(".")[-2], "Q8_0")

    source = write_gguf(tmp_path / "model.gguf", "llama", shapes, tensors, kind)
    report = mlxport.convert(source, tmp_path / "out")
    assert report.parity is not None and report.parity.passed
    assert report.parity.comparisons[0].row == "same weights" or report.parity.comparisons[0].relative < 1e-3
    written = json.loads((tmp_path / "out/config.json").read_text())
    block = written["quantization"]
    assert block["bits"] == 8 and block["model.layers.1.mlp.up_proj"]["bits"] == 4
    names = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())["weight_map"]
    assert "model.layers.0.self_attn.k_proj.scales" in names and "model.layers.0.self_attn.q_proj.scales" not in names
    again = mlxport.convert(source, tmp_path / "again", quantize=4, q_group_size=32, verify="none")
    assert any("quantized anew" in note for note in again.notes) and len(again.plan.quantized) == 16


@pytest.mark.parametrize("kind", ["Q8_0", "F16"])
def test_any_rows_are_those_of_the_whole(kind, tmp_path):
    refs = open_checkpoint(llama(tmp_path / "model.gguf", kind)).tensors
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight", "model.norm.weight"):
        whole = numbers(refs[name])
        for start, stop in ((0, 1), (3, 21), (15, 16), (16, 48), (len(whole) - 1, len(whole))):
            assert np.array_equal(numbers(refs[name], start, stop), whole[start:stop])


# --- names, config, tokenizer -----------------------------------------------------------------------------------------

SIZES: dict[str, Any] = dict(
    vocab_size=320, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, max_position_embeddings=256, rms_norm_eps=1e-5, rope_theta=50000.0,
    bos_token_id=0, eos_token_id=1, pad_token_id=None, tie_word_embeddings=False,
)  # fmt: skip
GEMMA: dict[str, Any] = dict(sliding_window=128, query_pre_attn_scalar=16, tie_word_embeddings=True)
EXPERTS: dict[str, Any] = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64)


def experts(architecture: str, writer: gguf.GGUFWriter) -> None:
    writer.add_expert_count(4)
    writer.add_expert_used_count(2)
    writer.add_expert_feed_forward_length(64)


def shared(architecture: str, writer: gguf.GGUFWriter) -> None:
    experts(architecture, writer)
    writer.add_expert_shared_feed_forward_length(64)


def layer_norms(architecture: str, writer: gguf.GGUFWriter) -> None:
    writer.add_layer_norm_eps(1e-5)


def window(architecture: str, writer: gguf.GGUFWriter) -> None:
    writer.add_sliding_window(128)


def caps(architecture: str, writer: gguf.GGUFWriter) -> None:
    window(architecture, writer)
    writer.add_attn_logit_softcapping(50.0)
    writer.add_final_logit_softcapping(30.0)


def nothing(architecture: str, writer: gguf.GGUFWriter) -> None:
    pass


MODELS = {
    "llama": (transformers.LlamaConfig, {}, nothing),
    "qwen2": (transformers.Qwen2Config, {}, nothing),
    "qwen3": (transformers.Qwen3Config, {}, nothing),
    "qwen3moe": (transformers.Qwen3MoeConfig, {**EXPERTS, "norm_topk_prob": True}, experts),
    "qwen2moe": (transformers.Qwen2MoeConfig, {**EXPERTS, "shared_expert_intermediate_size": 64}, shared),
    "mixtral": (transformers.MixtralConfig, {"num_local_experts": 4, "num_experts_per_tok": 2}, experts),
    "starcoder2": (transformers.Starcoder2Config, {"norm_epsilon": 1e-5, "use_bias": True}, layer_norms),
    "gemma": (transformers.GemmaConfig, {"tie_word_embeddings": True}, nothing),
    "gemma2": (transformers.Gemma2Config, GEMMA, caps),
    "gemma3": (transformers.Gemma3TextConfig, GEMMA, window),
    "phi3": (transformers.Phi3Config, {"sliding_window": 128}, window),
}  # fmt: skip


@pytest.mark.parametrize("architecture", MODELS)
def test_an_architecture_is_the_model_that_it_was_made_from(architecture, tmp_path):
    """Names by llama.cpp's own tables, rows and norms as its converter writes them; the same logits in transformers."""
    kind, fields, more = MODELS[architecture]
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(kind(**{**SIZES, **fields}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(tmp_path / "original")
    from safetensors.numpy import load_file

    original = load_file(tmp_path / "original/model.safetensors")
    called = "llama" if architecture == "mixtral" else architecture
    tensors = as_converted(original, called, SIZES)
    source = write_gguf(tmp_path / "model.gguf", called, SIZES, tensors, more=partial(more, called))
    checkpoint = open_checkpoint(source)
    assert {name: ref.shape for name, ref in checkpoint.tensors.items()} == {n: a.shape for n, a in original.items()}
    for name, ref in checkpoint.tensors.items():
        assert np.allclose(numbers(ref), original[name], atol=2e-7, rtol=0), name
    read = type(model).from_pretrained(
        None,
        config=transformers.AutoConfig.for_model(**checkpoint.config),
        state_dict={name: torch.from_numpy(numbers(ref)) for name, ref in checkpoint.tensors.items()},
    )
    ids = torch.tensor([[5, 9, 70, 3, 44, 200, 17]])
    with torch.inference_mode():
        assert torch.allclose(read(ids).logits, model(ids).logits, atol=1e-4)
    assert checkpoint.config["tie_word_embeddings"] == fields.get("tie_word_embeddings", False)


def test_the_whole_way_is_transformers_own_reading(tmp_path):
    """By the reader that transformers has of GGUF: the same logits and tokens as what was converted gives in mlx-lm."""
    import mlx.core as mx
    from mlx_lm.utils import load_model

    source = llama(tmp_path / "model.gguf", "Q8_0")
    report = mlxport.convert(source, tmp_path / "out", dtype="float32")
    assert report.parity is not None and report.parity.passed and report.tokenizer is not None
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    ids = [5, 9, 70, 3, 44, 200, 17]
    with torch.inference_mode():
        expected = theirs(torch.tensor([ids])).logits[0].numpy()
    found = np.array(load_model(tmp_path / "out")[0](mx.array([ids])))[0]
    assert np.abs(found - expected).max() < 1e-4
    tokenizers = [
        transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf"),
        transformers.AutoTokenizer.from_pretrained(tmp_path / "out"),
    ]
    for text in ("the weather, 123", "  Ünï 你好\n"):
        first, second = (tokenizer(text).input_ids for tokenizer in tokenizers)
        assert first == second and first[0] == 0
    assert len(tokenizers[1]) == 320 and tokenizers[1].chat_template == tokenizers[0].chat_template
    assert mlxport.verify(tmp_path / "out", source).passed


def test_a_vocabulary_of_sentencepiece_cuts_texts_as_transformers_own_reading_does(tmp_path):
    words = ["▁", "▁t", "▁th", "▁the", "▁w", "er", "in", "ing", "▁in"]
    letters = ["t", "h", "e", "w", "r", "i", "n", "g", "a", "d"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words, *letters]
    tokens += [f"extra{number}" for number in range(320 - len(tokens))]

    def more(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("llama")
        writer.add_token_list(tokens)
        writer.add_token_scores([-float(number) for number in range(len(tokens))])
        writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * (len(tokens) - 259)])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)

    source = write_gguf(
        tmp_path / "model.gguf", "llama", CONFIG, as_converted(weights(), "llama", CONFIG), more=more, tokenizer=False
    )
    folder = open_checkpoint(source)
    found = transformers.AutoTokenizer.from_pretrained(folder.root)
    expected = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    for text in ("the wering in", " the  thing", "Ünï\n"):
        assert found(text).input_ids == expected(text).input_ids and found(text).input_ids[0] == 1
        assert found.decode(found(text).input_ids) == expected.decode(expected(text).input_ids)
    assert found.bos_token == "<s>" and found.eos_token == "</s>" and len(found) == 320


def test_llama_3_factors_become_the_settings_that_give_them(tmp_path):
    settings = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    given = transformers.LlamaConfig(**{**SIZES, "rope_theta": 500000.0, "head_dim": 64}, rope_scaling=dict(settings))
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](given, "cpu")
    plain = 500000.0 ** -(torch.arange(0, 64, 2) / 64)
    tensors = as_converted(weights(), "llama", CONFIG) | {"rope_freqs.weight": (plain / scaled).numpy()}
    shapes = {**CONFIG, "rope_theta": 500000.0}
    source = write_gguf(tmp_path / "model.gguf", "llama", shapes, tensors)
    assert open_checkpoint(source).config["rope_scaling"] == settings
    odd = write_gguf(tmp_path / "odd.gguf", "llama", shapes, tensors | {"rope_freqs.weight": np.linspace(1, 9, 32)})
    with pytest.raises(UnsupportedError, match="rope_freqs.weight has factors up to 9 that are not llama 3's"):
        open_checkpoint(odd)


# --- files ------------------------------------------------------------------------------------------------------------


def test_inspect_says_what_it_is(tmp_path, mlxport):
    told = mlxport("inspect", llama(tmp_path / "model.gguf", "Q8_0"))
    assert told.code == 0 and re.search(r"format +GGUF", told.out)


def test_a_file_in_parts_is_read_whole(tmp_path):
    llama(tmp_path / "model.gguf", "F16", split_max_tensors=9)
    parts = sorted(tmp_path.glob("model-*-of-*.gguf"))
    assert len(parts) > 1
    whole = open_checkpoint(tmp_path)
    assert whole.weight_files == tuple(parts) and len(whole.tensors) == 21
    assert open_checkpoint(parts[-1]).tensors.keys() == whole.tensors.keys()
    report = mlxport.convert(parts[0], tmp_path / "out", verify="none")
    record = json.loads((tmp_path / "out/mlxport.json").read_text())
    assert set(record["source"]["files"]) == {part.name for part in parts}
    assert report.plan.dtype == "float16"
    parts[1].unlink()
    with pytest.raises(WeightsError, match="the part model-00002-of-"):
        open_checkpoint(parts[0])


def test_of_several_files_one_is_to_be_given(tmp_path):
    for name in ("a.gguf", "b.gguf"):
        llama(tmp_path / name, "F16")
    with pytest.raises(WeightsError, match="holds 2 GGUF models: a.gguf, b.gguf") as refused:
        open_checkpoint(tmp_path)
    assert str(tmp_path / "a.gguf") in refused.value.hint


def test_the_folder_that_is_made_of_a_file_goes(tmp_path):
    checkpoint = open_checkpoint(llama(tmp_path / "model.gguf", "F16"))
    folder = checkpoint.root
    assert (folder / "tokenizer.json").is_file() and str(checkpoint.location).endswith("model.gguf")
    del checkpoint
    assert not folder.exists()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return llama(tmp_path_factory.mktemp("gguf") / "model.gguf", "Q8_0").read_bytes()


def changed(content: bytes, old: bytes, new: bytes) -> bytes:
    assert old in content and len(old) == len(new)
    return content.replace(old, new, 1)


def with_type(content: bytes, number: int) -> bytes:
    """The type of the first tensor replaced."""
    at = content.index(b"token_embd.weight") + len(b"token_embd.weight") + 4 + 2 * 8
    return content[:at] + struct.pack("<I", number) + content[at + 4 :]


BROKEN = {
    "empty": (lambda c: b"", WeightsError, "is empty"),
    "no GGUF": (lambda c: b"GGML" + c[4:], WeightsError, "is not a GGUF file"),
    "a pointer": (lambda c: b"version https://git-lfs", WeightsError, "git-LFS pointer"),
    "big-endian": (lambda c: c[:4] + c[4:8][::-1] + c[8:], UnsupportedError, "big-endian"),
    "version 1": (lambda c: c[:4] + struct.pack("<I", 1) + c[8:], UnsupportedError, "version 1; 2 and 3 are read"),
    "cut in the header": (lambda c: c[:400], WeightsError, "truncated: its GGUF header"),
    "cut in the numbers": (lambda c: c[:-64], WeightsError, r"truncated: [\w.]+ ends at byte"),
    "a type that is not read": (lambda c: with_type(c, 20), UnsupportedError, "token_embd.weight is stored as IQ4_NL"),
    "a type that is none": (lambda c: with_type(c, 99), WeightsError, "of type 99, which ggml does not have"),
    "an architecture": (lambda c: changed(c, b"llama", b"mpt-x"), UnsupportedError, "'mpt-x' is not read from GGUF"),
    "a tensor": (
        lambda c: changed(c, b"blk.1.ffn_up.weight", b"blk.1.odd_up.weight"),
        UnsupportedError,
        "blk.1.odd_up",
    ),
    "counts": (lambda c: c[:8] + b"\xff" * 16 + c[24:], WeightsError, "its header counts"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_wrong_is_one_error(what, whole, tmp_path):
    change, kind, words = BROKEN[what]
    path = tmp_path / "model.gguf"
    path.write_bytes(change(whole))
    with pytest.raises((SourceError, UnsupportedError), match=words) as refused:
        mlxport.convert(path, tmp_path / "out")
    assert isinstance(refused.value, kind) and str(path) in refused.value.message and refused.value.hint
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("seed", range(40))
def test_bytes_that_flip_in_the_header_are_errors_of_ours(seed, whole, tmp_path):
    random = np.random.default_rng(seed)
    content = bytearray(whole)
    for place in random.integers(0, 2500, 3):
        content[place] = random.integers(0, 256)
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    try:
        found = open_checkpoint(path)
    except (SourceError, UnsupportedError) as error:
        assert error.hint
    else:
        assert found.tensors
