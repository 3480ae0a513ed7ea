"""Checkpoints that others have quantized: converted to the right numbers, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from tiny_models import (
    assert_same_weights,
    convert,
    convert_by_mlx_lm,
    copy_with,
    load,
    open_target,
    read_weights,
    save_model,
)

from mlxport.errors import ConfigError, MlxportError, QuantizationError, UnsupportedError
from mlxport.layouts.mlx_lm.quantized_sources import source_quantization
from mlxport.quant import make_request
from mlxport.source import open_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def deepseek(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("deepseek_v3", tmp_path_factory.mktemp("deepseek"))


def linear_names(weights: dict[str, mx.array]) -> list[str]:
    return [name for name in weights if name.rpartition(".weight")[0].endswith(LINEAR)]


def nibbles(words: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    """Pack the last axis by eights: element ``order[i]`` in bits 4i to 4i + 3."""
    grouped = words.reshape(*words.shape[:-1], -1, 8).astype(np.uint32)
    return sum(grouped[..., source] << np.uint32(4 * place) for place, source in enumerate(order)).astype(np.uint32)


def dense(folder: Path, module: str, **setting: Any) -> np.ndarray:
    """The matrix that a folder's quantized module stands for."""
    weights = read_weights(folder)
    parts = [weights[f"{module}.{part}"] for part in ("weight", "scales", "biases") if f"{module}.{part}" in weights]
    parts[1:] = [p if p.dtype == mx.uint8 else p.astype(mx.float32) for p in parts[1:]]
    return np.array(mx.dequantize(*parts, **setting).astype(mx.float32))


# ---- AWQ


def awq(weight: np.ndarray, group: int, zeros: bool) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """AutoAWQ's gemm tensors of a random matrix of the shape of ``weight``, and what they stand for."""
    random = np.random.default_rng(weight.size)
    rows, columns = weight.shape
    values = random.integers(0, 16, (columns, rows))
    points = random.integers(0, 16, (columns // group, rows)) if zeros else np.full((columns // group, rows), 8)
    scales = random.uniform(0.01, 0.1, points.shape).astype(np.float16)
    stored = {"qweight": nibbles(values, (0, 2, 4, 6, 1, 3, 5, 7)).view(np.int32), "scales": scales}
    if zeros:
        stored["qzeros"] = nibbles(points, (0, 2, 4, 6, 1, 3, 5, 7)).view(np.int32)
    spread = [np.repeat(x, group, axis=0).astype(np.float32) for x in (points, scales)]
    return stored, ((values - spread[0]) * spread[1]).T


def awq_folder(llama: Path, folder: Path, group: int = 32, zeros: bool = True, **config: Any) -> tuple[Path, dict]:
    weights = read_weights(llama)
    matrices = {}
    for name in linear_names(weights):
        stored, matrices[name[: -len(".weight")]] = awq(np.ones(weights.pop(name).shape), group, zeros)
        weights |= {name.replace("weight", part): mx.array(array) for part, array in stored.items()}
    block = {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm", "zero_point": zeros, **config}
    return copy_with(llama, folder, weights, quantization_config=block, dtype="float16"), matrices


@pytest.mark.parametrize("group", [32, 64])
@pytest.mark.parametrize("zeros", [True, False])
def test_awq_stands_for_the_same_matrices(group: int, zeros: bool, llama: Path, tmp_path: Path):
    source, matrices = awq_folder(llama, tmp_path / "awq", group, zeros)
    conversion = convert(source, tmp_path / "out")
    assert set(conversion.quantized) == set(matrices)
    for module, matrix in matrices.items():
        got = dense(tmp_path / "out", module, group_size=group, bits=4)
        assert np.abs(got - matrix).max() < 1e-3, module
    assert conversion.dtype == "float16"
    assert all(output.value is not None for output in conversion.program.outputs.values())
    reference = convert_by_mlx_lm(source, tmp_path / "theirs")
    assert_same_weights(read_weights(tmp_path / "out"), read_weights(reference))
    assert np.isfinite(np.array(load(tmp_path / "out")(mx.array([[1, 2]])).astype(mx.float32))).all()
    with pytest.raises(QuantizationError, match="already quantized"):
        open_target(open_checkpoint(source), quant=make_request(4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"version": "gemv"}, "quantized with awq: mlx-lm reads AutoAWQ's gemm packing, this is autoawq's gemv"),
        ({"backend": "llm-awq"}, "this is llm-awq's gemm"),
        ({"bits": 3}, "quantized with awq.*bits"),
    ],
)
def test_other_awq_is_refused(settings: dict, message: str, llama: Path, tmp_path: Path):
    source, _ = awq_folder(llama, tmp_path / "awq", **settings)
    with pytest.raises(UnsupportedError, match=message):
        open_target(open_checkpoint(source))


# ---- compressed-tensors


def packed_folder(model: Path, folder: Path, group: int = 32, **weights_args: Any) -> tuple[Path, dict]:
    """compressed-tensors' pack-quantized: signed 4-bit integers around 8, scales in the model's dtype."""
    random = np.random.default_rng(5)
    weights = read_weights(model)
    matrices = {}
    for name in [n for n in linear_names(weights) if ".experts." in n]:
        shape = weights.pop(name).shape
        values = random.integers(-8, 8, shape)
        scales = mx.array(random.uniform(0.01, 0.1, (shape[0], shape[1] // group)).astype(np.float32))
        scales = scales.astype(mx.bfloat16)
        stored = {
            "packed": mx.array(nibbles(values + 8, tuple(range(8))).view(np.int32)),
            "scale": scales,
            "shape": mx.array(shape),
        }
        weights |= {f"{name}_{part}": array for part, array in stored.items()}
        matrices[name] = values * np.repeat(np.array(scales.astype(mx.float32)), group, axis=1)
    settings = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": group}
    block = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": settings | weights_args}},
    }
    return copy_with(model, folder, weights, quantization_config=block), matrices


@pytest.mark.parametrize("group", [32, 64])
def test_packed_integers_stand_for_the_same_matrices(group: int, deepseek: Path, tmp_path: Path):
    source, matrices = packed_folder(deepseek, tmp_path / "packed", group)
    conversion = convert(source, tmp_path / "out")
    names = {"gate_proj", "up_proj", "down_proj"}
    assert {path.rpartition(".")[2] for path in conversion.quantized} == names
    for kind in names:
        got = dense(tmp_path / "out", f"model.layers.1.mlp.switch_mlp.{kind}", group_size=group, bits=4)
        for expert in range(4):
            want = matrices[f"model.layers.1.mlp.experts.{expert}.{kind}.weight"]
            assert np.abs(got[expert] - want).max() < 1e-2, (kind, expert)
    load(tmp_path / "out")


@pytest.mark.parametrize("wrong", [{"num_bits": 8}, {"symmetric": False}])
def test_packed_integers_that_mlx_lm_would_misread_are_refused(wrong: dict, deepseek: Path, tmp_path: Path):
    source, _ = packed_folder(deepseek, tmp_path / "packed", **wrong)
    with pytest.raises(UnsupportedError, match="compressed-tensors: mlx-lm reads packed integers as 4 bits around 8"):
        open_target(open_checkpoint(source))


@pytest.mark.parametrize(
    ("form", "parts"),
    [
        ("pack-quantized", {"weight_packed": mx.int32, "weight_scale": mx.bfloat16, "weight_shape": mx.int64}),
        ("float-quantized", {"weight": mx.uint8, "weight_scale": mx.bfloat16}),
        ("int-quantized", {"weight": mx.int8, "weight_scale": mx.bfloat16}),
        (
            "nvfp4-pack-quantized",
            {"weight_packed": mx.uint8, "weight_scale": mx.uint8, "weight_global_scale": mx.float16},
        ),
        ("naive-quantized", {"weight": mx.int8, "weight_scale": mx.bfloat16}),
        ("marlin-24", {"weight_packed": mx.int32, "scale_packed": mx.bfloat16, "meta": mx.int16}),
    ],
)
def test_compressed_tensors_without_a_place_in_llama_are_refused(form: str, parts: dict, llama: Path, tmp_path: Path):
    weights = read_weights(llama)
    for name in linear_names(weights):
        shape = weights.pop(name).shape
        weights |= {name.replace("weight", part): mx.ones(shape, dtype) for part, dtype in parts.items()}
    block = {"quant_method": "compressed-tensors", "format": form}
    source = copy_with(llama, tmp_path / "ct", weights, quantization_config=block)
    with pytest.raises(UnsupportedError, match="quantized with compressed-tensors"):
        open_target(open_checkpoint(source))


# ---- fp8


def e4m3(byte: int) -> float:
    """One sign, four exponent bits around 7, three of mantissa; NaN is left to the caller."""
    sign, exponent, mantissa = (-1.0 if byte & 128 else 1.0), byte >> 3 & 15, (byte & 7) / 8
    return sign * (mantissa * 2.0**-6 if exponent == 0 else (1 + mantissa) * 2.0 ** (exponent - 7))


E4M3 = np.array([e4m3(byte) for byte in range(256)])


def write_raw_fp8(path: Path, weights: dict[str, mx.array], fp8: dict[str, np.ndarray]) -> None:
    """A safetensors file whose tensors ``fp8`` are F8_E4M3; MLX itself writes no such dtype."""
    mx.save_safetensors(str(path), weights | {n: mx.array(a) for n, a in fp8.items()}, metadata={"format": "pt"})
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    for name in fp8:
        header[name]["dtype"] = "F8_E4M3"
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])


def fp8_folder(model: Path, folder: Path, scale: str = "weight_scale_inv") -> tuple[Path, dict]:
    """Linear layers as random fp8 with a float32 scale a block of 128 x 128, and what they stand for."""
    block = 128
    random = np.random.default_rng(11)
    weights = read_weights(model)
    fp8, matrices = {}, {}
    for name in linear_names(weights):
        rows, columns = weights.pop(name).shape
        data = random.integers(0, 256, (rows, columns), np.uint8)
        data[(data & 127) == 127] = 0  # no NaN
        scales = random.uniform(0.5, 2, (-(-rows // block), -(-columns // block))).astype(np.float32)
        fp8[name] = data
        weights[name.replace("weight", scale)] = mx.array(scales)
        spread = np.repeat(np.repeat(scales, block, axis=0)[:rows], block, axis=1)[:, :columns]
        matrices[name] = E4M3[data] * spread
    settings = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [block, block]}
    target = copy_with(model, folder, {}, quantization_config=settings)
    write_raw_fp8(target / "model.safetensors", weights, fp8)
    return target, matrices


def bf16(array: np.ndarray) -> np.ndarray:
    return np.array(mx.array(array.astype(np.float32)).astype(mx.bfloat16).astype(mx.float32))


def test_block_scaled_fp8_is_multiplied_out(tmp_path: Path):
    # Dimensions that are no multiple of a block, and some that are more than one.
    model = save_model("deepseek_v3", tmp_path / "model", hidden_size=192, intermediate_size=320)
    source, matrices = fp8_folder(model, tmp_path / "fp8")
    conversion = convert(source, tmp_path / "out")
    got = read_weights(tmp_path / "out")
    for name, matrix in matrices.items():
        if ".experts." in name:
            layer, _, rest = name.partition(".mlp.experts.")
            expert, _, kind = rest.partition(".")
            array = got[f"{layer}.mlp.switch_mlp.{kind}"][int(expert)]
        else:
            array = got[name]
        assert array.dtype == mx.bfloat16
        assert np.array_equal(np.array(array.astype(mx.float32)), bf16(matrix)), name
    assert len(matrices) == 2 * 1 + 3 + 3 * 5  # o_proj of two layers, one dense MLP, four experts and a shared one
    assert all(output.value is not None for output in conversion.program.outputs.values())
    assert not conversion.quantized
    assert "quantization_config" not in conversion.config
    load(tmp_path / "out")


def test_block_scaled_fp8_is_quantized_as_by_mlx_lm(deepseek: Path, tmp_path: Path):
    source, _ = fp8_folder(deepseek, tmp_path / "fp8")
    conversion = convert(source, tmp_path / "out", quant=make_request(4, group_size=32))
    assert all(output.value is not None for output in conversion.program.outputs.values())
    theirs = convert_by_mlx_lm(source, tmp_path / "theirs", quantize=True, q_group_size=32)
    assert_same_weights(read_weights(tmp_path / "out"), read_weights(theirs))


def test_fp8_on_an_architecture_that_does_not_know_it_is_refused(llama: Path, tmp_path: Path):
    source, _ = fp8_folder(llama, tmp_path / "fp8")
    with pytest.raises(UnsupportedError, match=r"quantized with fp8, and mlx-lm's llama has no place for .*scale_inv"):
        open_target(open_checkpoint(source))


@pytest.mark.parametrize("architecture", ["llama", "deepseek"])
def test_fp8_without_scales_is_refused(architecture: str, request: pytest.FixtureRequest, tmp_path: Path):
    source, _ = fp8_folder(request.getfixturevalue(architecture), tmp_path / "fp8")
    weights = mx.load(str(source / "model.safetensors"))
    fp8 = {n: np.array(a) for n, a in weights.items() if a.dtype == mx.uint8}
    rest = {n: a for n, a in weights.items() if n not in fp8 and "scale" not in n}
    write_raw_fp8(source / "model.safetensors", rest, fp8)
    with pytest.raises(UnsupportedError, match="is stored as F8_E4M3, and mlx-lm does not dequantize fp8"):
        open_target(open_checkpoint(source))


def test_fp8_with_scales_that_mlx_lm_drops_is_refused(deepseek: Path, tmp_path: Path):
    source, _ = fp8_folder(deepseek, tmp_path / "fp8", scale="weight_scale")
    with pytest.raises(UnsupportedError, match="is stored as F8_E4M3"):
        open_target(open_checkpoint(source))


@pytest.mark.parametrize("quant", [None, make_request(4)])
def test_fp8_that_mlx_lm_multiplies_as_integers_is_refused(quant: Any, llama: Path, tmp_path: Path):
    # mlx-lm's ministral3 multiplies the bytes with the scale, without decoding them.
    config = {"model_type": "ministral3", "architectures": ["Ministral3ForCausalLM"]}
    rope = {"rope_type": "default", "rope_theta": 5e3, "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 128}  # fmt: skip
    source, _ = fp8_folder(llama, tmp_path / "fp8")
    config = json.loads((source / "config.json").read_text()) | config | {"rope_parameters": rope}
    config.pop("rope_theta", None)
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match="is stored as F8_E4M3, and mlx-lm does not dequantize fp8"):
        open_target(open_checkpoint(source), quant=quant)


# ---- mxfp4 of gpt_oss


def test_mxfp4_experts_of_gpt_oss_are_kept_packed(tmp_path: Path):
    import transformers
    from tiny_models import CONFIGS, ROPE, SIZES

    sizes = {**SIZES, "intermediate_size": 64}
    CONFIGS["gpt_oss"] = lambda **changes: transformers.GptOssConfig(
        **sizes, **ROPE, num_local_experts=2, num_experts_per_tok=1, head_dim=16, pad_token_id=0, **changes
    )
    try:
        model = save_model("gpt_oss", tmp_path / "model")
    finally:
        del CONFIGS["gpt_oss"]
    random = np.random.default_rng(2)
    weights = read_weights(model)
    matrices = {}
    values = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
    for layer in range(2):
        for kind, rows, columns in (("gate_up_proj", 128, 64), ("down_proj", 64, 64)):
            prefix = f"model.layers.{layer}.mlp.experts.{kind}"
            weights.pop(prefix)
            blocks = random.integers(0, 256, (2, rows, columns // 32, 16), np.uint8)
            scales = random.integers(120, 130, (2, rows, columns // 32), np.uint8)
            weights |= {f"{prefix}_blocks": mx.array(blocks), f"{prefix}_scales": mx.array(scales)}
            codes = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(2, rows, columns // 32, 32)
            matrices[prefix] = (values[codes] * 2.0 ** (scales[..., None].astype(int) - 127)).reshape(2, rows, columns)
    source = copy_with(model, tmp_path / "packed", weights, quantization_config={"quant_method": "mxfp4"})
    conversion = convert(source, tmp_path / "out")
    assert {spec.mode for spec in conversion.quantized.values()} == {"mxfp4"}
    for prefix, matrix in matrices.items():
        wanted = (
            {"gate_proj": matrix[:, ::2], "up_proj": matrix[:, 1::2]} if "gate" in prefix else {"down_proj": matrix}
        )
        for kind, want in wanted.items():
            got = dense(tmp_path / "out", f"{prefix.rpartition('.')[0]}.{kind}", group_size=32, bits=4, mode="mxfp4")
            assert np.array_equal(got, want), (prefix, kind)
    load(tmp_path / "out")


# ---- methods that mlx-lm does not know, by name


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"quant_method": "gptq", "bits": 4}, "quantized with gptq: mlx-lm would read its packing as AWQ's"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "quantized with bitsandbytes, which mlx-lm cannot"),
        ({"quant_method": "hqq"}, "quantized with hqq"),
        ({"quant_method": "auto-round"}, "quantized with auto-round"),
        ({"quant_method": "quanto"}, "quantized with quanto"),
        ({"quant_method": "torchao"}, "quantized with torchao"),
        ({"quant_method": "fbgemm_fp8"}, "quantized with fbgemm_fp8"),
        ({"bits": 4}, "quantized with unknown"),
        ({"quant_method": "compressed-tensors", "format": "float-quantized"}, "compressed-tensors.*float-quantized"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "modelopt.*FP8"),
        ({"quant_method": "modelopt", "quantization": 4}, "modelopt"),
        ({"quant_method": ["awq"]}, "quantized with"),
        ("awq", "quantization_config must be an object"),
    ],
)
def test_other_methods_are_refused_by_name(block: Any, message: str, llama: Path, tmp_path: Path):
    weights = read_weights(llama)
    packed = {next(iter(weights)): mx.zeros((96, 32), mx.uint8)}  # plain weights would make the block a leftover
    source = copy_with(llama, tmp_path / "q", {**weights, **packed}, quantization_config=block)
    with pytest.raises(MlxportError, match=message):
        open_target(open_checkpoint(source))


def test_where_a_method_is_found():
    nested = {"text_config": {"quantization_config": {"quant_method": "fp8"}}}
    assert source_quantization(nested) == "fp8"
    assert source_quantization({"quantization": {"bits": 4}}) == "MLX"
    assert source_quantization({"quantization_config": None}) == ""
    assert source_quantization({}) == ""


@pytest.mark.parametrize("module", ["model.layers.0.self_attn.q_proj", "model.layers.1.input_layernorm"])
def test_an_entry_for_a_module_that_is_not_quantized_is_named(llama: Path, tmp_path: Path, module: str):
    quantized = entry_added(llama, tmp_path, module)
    weights = read_weights(quantized)
    if f"{module}.scales" in weights:
        plain = dense(quantized, module, group_size=32, bits=4)
        kept = {name: value for name, value in weights.items() if not name.startswith(f"{module}.")}
        (quantized / "model.safetensors.index.json").unlink()
        mx.save_safetensors(str(quantized / "model.safetensors"), {**kept, f"{module}.weight": mx.array(plain)})
    with pytest.raises(ConfigError, match=f"an entry for {module}, whose weights are not quantized") as error:
        open_target(open_checkpoint(quantized))
    assert "delete the entry" in str(error.value.hint)


def test_an_entry_for_a_module_that_is_not_there_is_a_note(llama: Path, tmp_path: Path):
    quantized = entry_added(llama, tmp_path, "model.layers.9.mlp.up_proj")
    notes = open_target(open_checkpoint(quantized)).notes
    assert [note for note in notes if "an entry for model.layers.9.mlp.up_proj, which the checkpoint does not" in note]
    plain = convert_by_mlx_lm(llama, tmp_path / "as it was", quantize=True, q_bits=4, q_group_size=32)
    assert not [note for note in open_target(open_checkpoint(plain)).notes if "an entry for" in note]


def entry_added(source: Path, folder: Path, module: str) -> Path:
    """A folder that mlx-lm has quantized, its config with an entry for one more module."""
    out = convert_by_mlx_lm(source, folder / "quantized", quantize=True, q_bits=4, q_group_size=32)
    config = json.loads((out / "config.json").read_text())
    for block in ("quantization", "quantization_config"):
        config[block][module] = {"group_size": 32, "bits": 4}
    (out / "config.json").write_text(json.dumps(config))
    return out
