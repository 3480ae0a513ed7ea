"""The target gives the tensors that mlx-lm's own conversion gives, bit for bit, and refuses what it cannot."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from tiny_models import (
    CONFIGS,
    assert_same_weights,
    convert,
    convert_by_mlx_lm,
    copy_with,
    edit_config,
    load,
    open_target,
    read_weights,
    save_model,
)

from mlxport.errors import QuantizationError, UnsupportedError, WeightsError
from mlxport.layouts.mlx_lm.opening import check_supported
from mlxport.quant import QuantRequest, Rule, make_request, read_recipe
from mlxport.source import open_checkpoint
from mlxport.types import QuantSpec

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

# name -> (options of open_target, options of mlx_lm.convert)
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "float16": ({"dtype": "float16"}, {"dtype": "float16"}),
    "4 bits": ({"quant": make_request(4)}, {"quantize": True}),
    "3 bits": ({"quant": make_request(3, group_size=32)}, {"quantize": True, "q_bits": 3, "q_group_size": 32}),
    "mxfp4": ({"quant": make_request("mxfp4")}, {"quantize": True, "q_mode": "mxfp4"}),
    "nvfp4": ({"quant": make_request("nvfp4")}, {"quantize": True, "q_mode": "nvfp4"}),
    "mxfp8": ({"quant": make_request("mxfp8")}, {"quantize": True, "q_mode": "mxfp8"}),
    "mixed": (
        {"quant": make_request("mixed_3_6"), "dtype": "float32"},
        {"quantize": True, "quant_predicate": "mixed_3_6", "q_group_size": 64, "dtype": "float32"},
    ),
}


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of an architecture, made once."""
    made: dict[str, Path] = {}

    def folder(architecture: str) -> Path:
        if architecture not in made:
            made[architecture] = save_model(architecture, tmp_path_factory.mktemp(architecture))
        return made[architecture]

    return folder


# Every architecture once plain and once quantized, llama with every setting, and each other setting somewhere else too.
CASES = [
    *((name, setting) for name in CONFIGS for setting in ("plain", "4 bits")),
    *(("llama", setting) for setting in SETTINGS if setting not in ("plain", "4 bits")),
    ("mixtral", "3 bits"),
    ("qwen3_moe", "mxfp4"),
    ("deepseek_v3", "nvfp4"),
    ("deepseek_v3", "mixed"),
    ("phi3", "mxfp8"),
    ("gemma2", "float16"),
    ("llama_tied", "mixed"),
]


@pytest.mark.parametrize(("architecture", "setting"), CASES)
def test_tensors_are_those_of_mlx_lm(architecture: str, setting: str, saved, tmp_path: Path):
    ours, theirs = SETTINGS[setting]
    source = saved(architecture)
    conversion = convert(source, tmp_path / "ours", **ours)
    reference = convert_by_mlx_lm(source, tmp_path / "theirs", **theirs)
    assert_same_weights(read_weights(tmp_path / "ours"), read_weights(reference))
    config = json.loads((reference / "config.json").read_text())
    assert conversion.config.get("quantization") == config.get("quantization")
    assert conversion.config.get("quantization_config") == config.get("quantization_config")
    assert bool(conversion.quantized) == ("quant" in ours)
    index = json.loads((reference / "model.safetensors.index.json").read_text())
    assert conversion.parameters == index["metadata"]["total_parameters"]
    assert sum(tensor.nbytes for tensor in conversion.tensors()) == index["metadata"]["total_size"]
    assert conversion.dtype == conversion.config["dtype"] == ours.get("dtype", "bfloat16")


def test_every_tensor_is_followed_so_memory_is_bounded(saved):
    for architecture in CONFIGS:
        outputs = open_target(open_checkpoint(saved(architecture)), quant=make_request(4)).program.outputs
        assert not [name for name, output in outputs.items() if output.value is None], architecture


def test_old_configs_are_cast_to_what_they_say(saved, tmp_path: Path):
    source = shutil.copytree(saved("llama"), tmp_path / "old")
    edit_config(source, torch_dtype="float16", dtype=None)
    conversion = convert(source, tmp_path / "ours")
    assert_same_weights(read_weights(tmp_path / "ours"), read_weights(convert_by_mlx_lm(source, tmp_path / "theirs")))
    assert conversion.dtype == conversion.config["torch_dtype"] == "float16"


def test_infinite_numbers_stay_valid_json(saved, tmp_path: Path):
    source = shutil.copytree(saved("llama"), tmp_path / "tagged")
    edit_config(source, time_step_limit=[0.0, {"__float__": "Infinity"}])
    assert open_target(open_checkpoint(source)).config["time_step_limit"] == [0.0, {"__float__": "Infinity"}]


# ---- missing, unexpected, misshapen


def altered(saved, folder: Path, change: Callable[[dict[str, mx.array]], None], **config: Any) -> Path:
    weights = read_weights(saved("llama"))
    change(weights)
    return copy_with(saved("llama"), folder, weights, **config)


def test_a_missing_tensor_is_named(saved, tmp_path: Path):
    source = altered(saved, tmp_path / "m", lambda w: w.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(WeightsError, match=r"llama expects model\.layers\.1\.mlp\.up_proj\.weight, absent"):
        open_target(open_checkpoint(source))


def test_many_missing_tensors_are_counted(saved, tmp_path: Path):
    source = altered(saved, tmp_path / "m", lambda w: [w.pop(n) for n in list(w) if ".mlp." in n or "layernorm" in n])
    with pytest.raises(WeightsError, match="and 2 more, absent"):
        open_target(open_checkpoint(source))


def test_an_unexpected_tensor_is_named(saved, tmp_path: Path):
    source = altered(saved, tmp_path / "m", lambda w: w.update({"model.layers.1.extra.weight": mx.ones((2,))}))
    with pytest.raises(WeightsError, match=r"llama has no place for model\.layers\.1\.extra\.weight"):
        open_target(open_checkpoint(source))
    assert open_target(open_checkpoint(source), strict=False).program.unused() == ("model.layers.1.extra.weight",)


def test_a_wrong_shape_is_named(saved, tmp_path: Path):
    source = altered(saved, tmp_path / "m", lambda w: w.update({"model.norm.weight": mx.ones((63,))}))
    with pytest.raises(WeightsError, match=r"model\.norm\.weight: config\.json asks for shape \(64,\), .* has \(63,\)"):
        open_target(open_checkpoint(source), strict=False)


def test_an_unknown_architecture_is_refused_from_the_config_alone():
    with pytest.raises(UnsupportedError):
        check_supported({"model_type": "no_such_model"})


# ---- recipes


def test_rules_of_a_file_first_match_wins_and_the_folder_loads(saved, tmp_path: Path):
    path = tmp_path / "recipe.toml"
    path.write_text(
        """
        "model.layers.0.*" = "keep"
        "*.v_proj" = { bits = 6, group_size = 32 }
        "*.down_proj" = { bits = 3, group_size = 128 }
        "*.up_proj" = "mxfp8"
        "lm_head" = { mode = "nvfp4" }
        "*_proj" = { bits = 4, group_size = 64 }
        """
    )
    conversion = convert(saved("llama"), tmp_path / "out", quant=read_recipe(path))
    layer = "model.layers.1"
    assert conversion.quantized == {
        f"{layer}.self_attn.v_proj": QuantSpec("affine", 6, 32),
        f"{layer}.mlp.down_proj": QuantSpec("affine", 3, 128),
        f"{layer}.mlp.up_proj": QuantSpec("mxfp8", 8, 32),
        "lm_head": QuantSpec("nvfp4", 4, 16),
        **{f"{layer}.self_attn.{p}_proj": QuantSpec("affine", 4, 64) for p in "qko"},
        f"{layer}.mlp.gate_proj": QuantSpec("affine", 4, 64),
    }
    first = QuantSpec("affine", 6, 32).as_config()
    assert first.items() <= conversion.config["quantization"].items()
    assert conversion.kept["model.layers.0.mlp.up_proj"] == "kept by the recipe"
    assert conversion.kept["model.embed_tokens"] == "no rule of the recipe matches"
    assert conversion.kept["model.norm"] == "MLX has no quantized RMSNorm"
    assert set(conversion.kept) & set(conversion.quantized) == set()
    source = read_weights(saved("llama"))
    weights = read_weights(tmp_path / "out")
    for module, spec in conversion.quantized.items():
        setting = {"group_size": spec.group_size, "bits": spec.bits, "mode": spec.mode}
        parts = dict(
            zip(("weight", "scales", "biases"), mx.quantize(source[f"{module}.weight"], **setting), strict=False)
        )
        assert_same_weights({n: weights[f"{module}.{n}"] for n in parts}, parts)
    model = load(tmp_path / "out")
    loaded = {name: QuantSpec(m.mode, m.bits, m.group_size) for name, m in model.named_modules() if hasattr(m, "bits")}
    assert loaded == conversion.quantized


@pytest.mark.parametrize("setting", ["mixed", "nvfp4", "3 bits"])
def test_mlx_lm_loads_the_folder_and_computes_the_same(setting: str, saved, tmp_path: Path):
    ours, theirs = SETTINGS[setting]
    convert(saved("llama"), tmp_path / "ours", **ours)
    convert_by_mlx_lm(saved("llama"), tmp_path / "theirs", **theirs)
    tokens = mx.array([[3, 5, 8, 13]])
    assert mx.array_equal(load(tmp_path / "ours")(tokens), load(tmp_path / "theirs")(tokens))


def test_a_rule_that_matches_nothing_is_refused(saved):
    rules = make_request("mxfp4").spec
    request = QuantRequest(rules, rules=read_rules({"*.v_prjo": rules, "*": rules}))
    with pytest.raises(QuantizationError, match=r"'\*\.v_prjo' matches no module"):
        open_target(open_checkpoint(saved("llama")), quant=request)


def read_rules(rules: dict[str, QuantSpec | None]) -> tuple[Any, ...]:
    return tuple(Rule(pattern, spec) for pattern, spec in rules.items())


def test_a_rule_whose_group_does_not_fit_says_so(saved):
    wide, fine = QuantSpec("affine", 4, 128), QuantSpec("affine", 4, 32)
    request = QuantRequest(wide, rules=read_rules({"*.down_proj": fine, "*": wide}))
    conversion = open_target(open_checkpoint(saved("llama")), quant=request)
    assert set(conversion.quantized) == {f"model.layers.{i}.mlp.down_proj" for i in (0, 1)}
    assert conversion.kept["lm_head"] == "its last dimension 64 is not a multiple of the group size 128"


def test_a_group_that_fits_no_module_is_refused(saved, tmp_path: Path):
    source = save_model("llama", tmp_path / "odd", hidden_size=40, intermediate_size=72, num_attention_heads=4)
    with pytest.raises(QuantizationError, match="nothing can be quantized with affine 4 bits, group size 64"):
        open_target(open_checkpoint(source), quant=make_request(4))


def test_what_mlx_lm_keeps_is_listed(saved):
    conversion = open_target(open_checkpoint(saved("qwen2_moe")), quant=make_request(4))
    gates = [path for path in conversion.kept if path.endswith("mlp.gate")]
    assert not set(gates) & set(conversion.quantized)
    every = {path for path, _ in open_target(open_checkpoint(saved("qwen2_moe"))).program.outputs.items()}
    modules = {name.rpartition(".")[0] for name in every}
    assert set(conversion.kept) | set(conversion.quantized) == modules


def test_a_mixed_recipe_that_does_not_fit_is_refused(saved):
    with pytest.raises(QuantizationError, match="mixed_4_6 does not fit this architecture"):
        open_target(open_checkpoint(saved("gpt_neox")), quant=make_request("mixed_4_6"))


def test_a_group_size_of_the_architectures_own_that_does_not_divide_the_columns(tmp_path: Path):
    """granitemoe wants its experts' down_proj in groups of 64."""
    source = save_model("granitemoe", tmp_path / "source", intermediate_size=96)
    conversion = convert(source, tmp_path / "mlx", quant=make_request(4, group_size=32))
    down = conversion.quantized["model.layers.0.block_sparse_moe.switch_mlp.down_proj"]
    assert (down.bits, down.group_size) == (8, 32)
    load(tmp_path / "mlx")


# ---- already in MLX's format


def test_an_mlx_quantized_source_is_kept_and_not_quantized_again(saved, tmp_path: Path):
    source = convert_by_mlx_lm(
        saved("llama"), tmp_path / "mlx", quantize=True, quant_predicate="mixed_2_6", q_group_size=32
    )
    conversion = convert(source, tmp_path / "again")
    assert_same_weights(read_weights(tmp_path / "again"), read_weights(source))
    before = json.loads((source / "config.json").read_text())
    assert conversion.config["quantization"] == before["quantization"]
    assert {spec.bits for spec in conversion.quantized.values()} == {2, 6}
    assert conversion.parameters == open_target(open_checkpoint(saved("llama"))).parameters
    load(tmp_path / "again")
    with pytest.raises(QuantizationError, match="already quantized"):
        open_target(open_checkpoint(source), quant=make_request(4))
