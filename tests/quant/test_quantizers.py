"""``quantizer="search"`` from a checkpoint to what is written: layouts, recipes, experts, what stays as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
import pytest
import torch
import transformers

import mlxport as package
from mlxport.layouts.mlx_lm.opening import open_model
from mlxport.output.plan import make_shards
from mlxport.output.shards import write_shard
from mlxport.quant.search import search_affine, search_bytes
from mlxport.source import open_checkpoint
from mlxport.transform import st_dtype, to_bytes, trace
from mlxport.types import OutTensor, TensorRef

PARTS = ("weight", "scales", "biases")


def stored(folder: Path) -> dict[str, mx.array]:
    """All tensors of a folder."""
    return {name: array for path in sorted(folder.glob("*.safetensors")) for name, array in mx.load(str(path)).items()}


def same(ours: mx.array, theirs: mx.array) -> bool:
    return ours.dtype == theirs.dtype and to_bytes(ours).tobytes() == to_bytes(theirs).tobytes()


def assert_modules_searched(out: Path, plain: Path) -> int:
    """Every affine module of ``out`` is the search of that module of the unquantized ``plain``; how many there are."""
    found, weights = stored(out), stored(plain)
    quantized = json.loads((out / "mlxport.json").read_text())["output"]["quantized"]
    for module, spec in quantized.items():
        weight, settings = weights[f"{module}.weight"], {k: v for k, v in spec.items() if k != "mode"}
        triple = search_affine(weight, **settings) if spec["mode"] == "affine" else mx.quantize(weight, **spec)
        for part, wanted in zip(PARTS, triple, strict=False):
            assert same(found[f"{module}.{part}"], wanted), (module, part)
    return len(quantized)


@pytest.mark.parametrize(
    "options",
    [{"quantize": 4}, {"quantize": 2, "q_group_size": 32}, {"quantize": 5}, {"quantize": "mixed_3_6"}],
    ids=["4", "2 in 32", "5", "mixed"],
)
def test_tensors_are_those_of_the_search(options, source, converted, tmp_path):
    package.convert(source, tmp_path / "out", quantizer="search", verify="none", **options)
    assert assert_modules_searched(tmp_path / "out", converted) > 10
    record = json.loads((tmp_path / "out/mlxport.json").read_text())
    assert record["options"]["quantize"]["quantizer"] == "search"


def test_a_recipe_with_another_mode(source, converted, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('"*.down_proj" = "mxfp4"\n"*.v_proj" = "keep"\n"*" = 3\n')
    package.convert(source, tmp_path / "out", recipe=recipe, quantizer="search", verify="none")
    assert assert_modules_searched(tmp_path / "out", converted) > 10


def test_the_default_is_rtn(source, converted, tmp_path, mlxport):
    for name, options in (("plain", []), ("rtn", ["--quantizer", "rtn"])):
        assert mlxport("convert", source, tmp_path / name, "-q", "4", "--verify", "none", *options).code == 0
    plain, weights = stored(tmp_path / "plain"), stored(converted)
    triple = mx.quantize(weights["lm_head.weight"], group_size=64, bits=4)
    assert all(same(plain[f"lm_head.{part}"], wanted) for part, wanted in zip(PARTS, triple, strict=True))
    names = [path.name for path in (tmp_path / "plain").iterdir()]
    assert all((tmp_path / "plain" / n).read_bytes() == (tmp_path / "rtn" / n).read_bytes() for n in names)


def test_the_command_line_searches_and_verifies(source, converted, tmp_path, mlxport):
    assert mlxport("convert", source, tmp_path / "out", "-q", "6", "--quantizer", "search").code == 0
    assert assert_modules_searched(tmp_path / "out", converted) > 10
    assert mlxport("verify", tmp_path / "out", "--against", source).code == 0
    refused = mlxport("convert", source, tmp_path / "no", "--quantizer", "search")
    assert refused.code == 2 or "no effect without --quantize" in refused.err


def mixtral(folder: Path, tokenizer: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        vocab_size=320, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4,
    )  # fmt: skip
    transformers.MixtralForCausalLM(config).eval().save_pretrained(folder)
    for path in tokenizer.glob("tokenizer*"):
        shutil.copy(path, folder)
    return folder


@pytest.mark.parametrize("layout", ["mlx-lm", "generated"])
def test_experts(layout: str, source: Path, tmp_path: Path):
    source = mixtral(tmp_path / "mixtral", tokenizer=source)
    package.convert(source, tmp_path / "plain", layout=layout, verify="none")
    report = package.convert(source, tmp_path / "out", layout=layout, quantize=4, quantizer="search", verify="none")
    assert assert_modules_searched(tmp_path / "out", tmp_path / "plain") == len(report.plan.quantized)
    assert any(array.ndim == 3 and name.endswith("scales") for name, array in stored(tmp_path / "out").items())


def test_a_module_of_ones_own(tmp_path: Path):
    def make() -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 8)), (
            torch.randn(2, 64),
        )

    package.port_folder(make, tmp_path / "plain")
    report = package.port_folder(make, tmp_path / "out", quantize=4, quantizer="search")
    assert report.parity is not None and report.parity.passed
    assert assert_modules_searched(tmp_path / "out", tmp_path / "plain") == 2


def test_what_the_trace_cannot_follow_is_searched_too(tmp_path: Path):
    """A pipeline that looks at values runs as it is when its outputs are written, with the quantizer asked for."""
    array = mx.random.normal((6, 128), key=mx.random.key(5)).astype(mx.bfloat16)
    path = tmp_path / "in.safetensors"
    mx.save_safetensors(str(path), {"w": array})
    ref = TensorRef("w", "BF16", (6, 128), path, 8 + int.from_bytes(path.read_bytes()[:8], "little"))

    def pipeline(tensors: dict[str, mx.array]) -> dict[str, mx.array]:
        doubled = tensors["w"] * (2 if tensors["w"][0, 0].item() < 100 else 1)
        mode = mx.quantize(doubled, group_size=32, bits=4, mode="mxfp4")
        return dict(zip((*PARTS, "words", "e8m0"), (*mx.quantize(doubled, 64, 3), *mode), strict=True))

    program = trace(pipeline, {"w": ref})
    assert all(output.value is None for output in program.outputs.values())
    program = type(program)(program.refs, program.outputs, program.pipeline, "search")
    tensors = [OutTensor(n, st_dtype(o.dtype), o.shape, n) for n, o in program.outputs.items()]
    quantize = mx.quantize
    write_shard(program, make_shards(tensors, 1 << 30)[0], tmp_path / "out.safetensors")
    assert mx.quantize is quantize
    wanted = (*search_affine(array * 2, group_size=64, bits=3), *mx.quantize(array * 2, 32, 4, mode="mxfp4"))
    got = mx.load(str(tmp_path / "out.safetensors"))
    assert all(same(got[name], w) for name, w in zip((*PARTS, "words", "e8m0"), wanted, strict=True))


def test_the_plan_counts_the_searchs_memory(source):
    from mlxport.quant import make_request

    checkpoint = open_checkpoint(str(source))
    plain, searched = (
        open_model(checkpoint).conversion(make_request(4, quantizer=quantizer)).working_bytes()
        for quantizer in ("rtn", "search")
    )
    assert plain < searched <= plain + search_bytes(1 << 30)
