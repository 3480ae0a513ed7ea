"""``convert --layout generated``: transformers checkpoints whose weights stay on disk until they are written."""

from __future__ import annotations

import json

import mlx.core as mx
import numpy as np
import pytest
import torch
import transformers
from mlx.utils import tree_flatten
from safetensors.torch import load_file, save_file

import mlxport as package

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def t5():
    config = transformers.T5Config(
        vocab_size=97, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config)


def mixtral():
    config = transformers.MixtralConfig(vocab_size=97, num_key_value_heads=2, num_local_experts=4, **SMALL)
    return transformers.MixtralForCausalLM(config)


def gpt_oss():
    config = transformers.GptOssConfig(vocab_size=97, num_key_value_heads=2, head_dim=8, num_local_experts=4, **SMALL)
    return transformers.GptOssForCausalLM(config)


def vit():
    return transformers.ViTForImageClassification(transformers.ViTConfig(image_size=32, patch_size=8, **SMALL))


def resnet():
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    model = transformers.ResNetForImageClassification(config)
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    return model


@pytest.fixture
def saved(tmp_path):
    def save(make):
        torch.manual_seed(0)
        make().eval().save_pretrained(tmp_path / "source")
        return tmp_path / "source"

    return save


@pytest.mark.parametrize(
    ("make", "fits"),
    [(t5, "a head and embeddings that are one tensor"), (mixtral, " = SwitchLinear("), (vit, "nn.Conv2d(")],
    ids=["tied", "experts stacked and fused", "images"],
)
def test_converted(make, fits, saved, tmp_path, mlxport):
    result = mlxport("convert", saved(make), tmp_path / "out", "--layout", "generated", "--no-cache", "--json")
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert report["verified"]
    rows = report["parity"]["comparisons"]
    assert {row["inputs"] for row in rows} == {"example", "other sizes"} and max(row["relative"] for row in rows) < 1e-5
    source = (tmp_path / "out" / "model.py").read_text()
    assert fits in source or make is t5
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_file"] == "model.py" and config["architectures"] and config["dtype"] == "float32"


def test_auto_takes_the_layout_that_there_is(saved, tmp_path, mlxport):
    """mlx-lm has no ViT, so its source is generated; asked for by name, mlx-lm's layout is refused as before."""
    source = saved(vit)
    refused = mlxport("convert", source, tmp_path / "out", "--layout", "mlx-lm")
    assert refused.code != 0 and "mlx-lm has no architecture 'vit'" in refused.err
    assert mlxport("convert", source, tmp_path / "out").code == 0
    assert json.loads((tmp_path / "out" / "mlxport.json").read_text())["options"]["layout"] == "generated"


def test_the_options_of_port(saved, tmp_path, mlxport):
    options = ("--layout", "generated", "--no-dynamic", "--fold-batchnorm", "--mlxfn")
    out, source = tmp_path / "out", saved(resnet)
    result = mlxport("convert", source, out, *options)
    assert result.code == 0, result.err
    names = {name for name, _ in tree_flatten(package.load(out).parameters())}
    assert not any("running_" in name for name in names)
    inputs = mx.load(str(out / "example_inputs.safetensors"))
    outputs = mx.load(str(out / "example_outputs.safetensors"))
    (logits,) = mx.import_function(str(out / "model.mlxfn"))(inputs["pixel_values"])
    assert mx.allclose(logits, outputs["logits"], atol=1e-5)
    with pytest.raises(ValueError, match="pixel_values must be an mx.array of shape"):
        package.load(out)(mx.zeros((5, *inputs["pixel_values"].shape[1:])))
    assert mlxport("verify", out, "--against", source).code == 0


@pytest.mark.parametrize("layout", ["auto", "mlx-lm"])
def test_the_options_of_port_are_refused_for_another_layout(layout, source, tmp_path, mlxport):
    result = mlxport("convert", source, tmp_path / "out", "--layout", layout, "--mlxfn", "--no-dynamic")
    assert result.code == 2 and "--no-dynamic, --mlxfn: for the generated layout only" in result.err
    assert "--layout generated" in result.err and not (tmp_path / "out").exists()


def test_generating_with_a_port_is_refused(saved, tmp_path, mlxport):
    package.convert(saved(mixtral), tmp_path / "out", layout="generated", cache=False)
    result = mlxport("generate", tmp_path / "out", "--prompt", "a", "--trust-remote-code")
    assert result.code == 1 and "without a key-value cache" in result.err and "--layout mlx-lm" in result.err


def test_dtype_and_quantization(saved, tmp_path):
    source = saved(vit)
    half = package.convert(source, tmp_path / "half", dtype="float16")
    assert half.parity is not None and half.parity.passed and half.plan.dtype == "float16"
    arrays = dict(tree_flatten(package.load(tmp_path / "half").parameters()))
    assert {array.dtype for array in arrays.values()} == {mx.float16}
    package.convert(source, tmp_path / "small", quantize=8, q_group_size=32)
    names = {name for name, _ in tree_flatten(package.load(tmp_path / "small").parameters())}
    assert any(name.endswith("classifier.scales") for name in names)


@pytest.mark.parametrize(
    ("make", "turned"), [(mixtral, False), (gpt_oss, True)], ids=["stored as MLX has them", "stored turned"]
)
def test_experts_are_quantized(make, turned, saved, tmp_path):
    """As mx.quantize does each expert's matrix, and mixed with other settings by a recipe."""
    source = saved(make)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        "\n".join(f'"{glob}" = {{bits = {n}, group_size = 32}}' for glob, n in (("*gate_up_proj", 4), ("*", 8)))
    )
    report = package.convert(source, tmp_path / "out", layout="generated", cache=False, recipe=recipe)
    assert report.parity is not None and report.parity.passed
    model = package.load(tmp_path / "out")
    experts = model.model.layers[0].mlp.experts
    assert experts.gate_up_proj.bits == 4 and experts.down_proj.bits == 8
    package.convert(source, tmp_path / "plain", layout="generated", cache=False)
    stored = package.load(tmp_path / "plain")
    plain = stored.model.layers[0].mlp.experts.gate_up_proj.weight
    for part, wanted in zip(("weight", "scales", "biases"), mx.quantize(plain, 32, 4), strict=True):
        assert mx.array_equal(experts.gate_up_proj[part], wanted)
    original = make_original(source)
    assert np.allclose(np.array(plain), original.mT if turned else original)
    x, chosen = mx.random.normal((5, 1, 32)), mx.array([0, 1, 1, 2, 3])
    wanted = x @ mx.dequantize(*mx.quantize(plain, 32, 4), 32, 4)[chosen].swapaxes(1, 2)
    assert mx.allclose(experts.gate_up_proj(x, chosen, sorted_indices=True), wanted, atol=1e-4)


def make_original(source):
    model = transformers.AutoModelForCausalLM.from_pretrained(source)
    return model.model.layers[0].mlp.experts.gate_up_proj.detach()


def test_weights_are_the_checkpoints(saved, tmp_path):
    """Not those that the model had when it was captured: another checkpoint of the same config gives other outputs."""
    source = saved(vit)
    weights = load_file(source / "model.safetensors")
    weights["classifier.bias"] += 5
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    package.convert(source, tmp_path / "out")
    pixels = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        wanted = transformers.ViTForImageClassification.from_pretrained(source).eval()(pixels).logits.numpy()
    got = np.array(package.load(tmp_path / "out")(mx.array(pixels.numpy()))["logits"])
    assert np.abs(got - wanted).max() < 1e-5 and wanted.min() > 3


@pytest.mark.parametrize("how", ["missing", "misshapen"])
def test_wrong_weights_are_named(how, saved, tmp_path, mlxport):
    source = saved(vit)
    weights = load_file(source / "model.safetensors")
    if how == "missing":
        del weights["classifier.bias"]
    else:
        weights["classifier.bias"] = torch.zeros(7)
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    result = mlxport("convert", source, tmp_path / "out", "--layout", "generated")
    assert result.code == 1 and "classifier.bias" in result.err and "Traceback" not in result.err
    assert not (tmp_path / "out").exists()


def test_verify_names_a_tensor_that_changed(saved, tmp_path, mlxport):
    source = saved(vit)
    package.convert(source, tmp_path / "out")
    path = tmp_path / "out" / "model.safetensors"
    weights = {name: mx.array(np.array(array)) for name, array in mx.load(str(path)).items()}
    name = next(key for key in weights if "layers.1" in key or "layer.1" in key if key.endswith("weight"))
    weights[name] = weights[name] + 0.5
    mx.save_safetensors(str(path), weights, {"format": "mlx"})
    result = mlxport("verify", tmp_path / "out", "--against", source)
    assert result.code == 3 and name in result.err, result.err


@pytest.mark.parametrize("layout", ["auto", "generated"])
def test_without_verification_in_a_process_of_its_own(layout, saved, tmp_path):
    """Which leaves torch out where nothing needs it; a capture does."""
    from command import finish, start

    options = ("--verify", "none", "--layout", layout)
    result = finish(start("convert", saved(vit), tmp_path / "out", *options))
    assert result.code == 0, result.err
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model.py", "example_outputs.safetensors"} <= names
