"""`convert --calibrate`: better than round-to-nearest on every kind of architecture, resumable, bounded, or refused."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import mlxport
from checkpoints import (
    hash_tree,
    leftovers,
    read_raw,
    save,
    weights,
    write_llama,
    write_raw,
    write_side_files,
    write_tokenizer,
)
from command import MAIN, ROOT, environment, finish, start
from mlxport.errors import UnsupportedError

TEXT = (ROOT / "examples" / "heldout.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    """About 4,000 tokens of the tiny models, whose tokenizer knows bytes."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT[:4000], encoding="utf-8")
    return path


def log_probabilities(folder: Path, ids: mx.array) -> mx.array:
    from mlx_lm.utils import load_model

    model = load_model(folder)[0]
    model.set_dtype(mx.float32)
    found = nn.log_softmax(model(ids).astype(mx.float32), axis=-1)
    mx.eval(found)
    return found


def divergence(original: mx.array, other: mx.array) -> float:
    return (mx.exp(original) * (original - other)).sum(axis=-1).mean().item()


def tensors(folder: Path) -> dict[str, mx.array]:
    return {k: v for path in sorted(folder.glob("*.safetensors")) for k, v in mx.load(str(path)).items()}


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "mlxport.json").read_text())["calibration"]
    return found


# --- quality --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def held_out(tmp_path_factory) -> tuple[mx.array, mx.array]:
    """Text that nothing was calibrated on, and what the trained example says of it."""
    from mlx_lm.utils import load_tokenizer

    folder = tmp_path_factory.mktemp("held out") / "plain"
    mlxport.convert(ROOT / "examples/tiny-llama", folder, dtype="float32", verify="none")
    tokens = mx.array(load_tokenizer(folder).encode((ROOT / "examples/heldout.txt").read_text())[:1024]).reshape(
        -1, 256
    )
    return tokens, log_probabilities(folder, tokens)


@pytest.mark.parametrize(("bits", "most", "columns"), [(4, 0.65, 0), (3, 0.62, 0), (2, 0.55, 0), (3, 0.65, 128)])
def test_a_trained_model_diverges_less(bits, most, columns, held_out, tmp_path, monkeypatch):
    """On text that it was not calibrated on; examples/tiny-llama is a code model, the default text has some.

    With ``columns``, wider matrices (down_proj has 384) are taken apart as those of large models are.
    """
    if columns:
        monkeypatch.setattr("mlxport.calibrate.moments.MOST_COLUMNS", columns)
    source = ROOT / "examples/tiny-llama"
    calibration = tmp_path / "text.txt"
    calibration.write_text("".join((ROOT / f"src/mlxport/output/{n}.py").read_text() for n in ("shards", "plan")))
    mlxport.convert(source, tmp_path / "rtn", quantize=bits, verify="none")
    report = mlxport.convert(source, tmp_path / "fed", quantize=bits, calibrate=calibration, verify="full")
    assert report.parity is not None and report.parity.passed
    tokens, original = held_out
    plain, fed = (divergence(original, log_probabilities(tmp_path / name, tokens)) for name in ("rtn", "fed"))
    assert fed < most * plain
    rtn, ours = tensors(tmp_path / "rtn"), tensors(tmp_path / "fed")
    assert {k: (v.shape, v.dtype) for k, v in rtn.items()} == {k: (v.shape, v.dtype) for k, v in ours.items()}
    assert (tmp_path / "rtn/config.json").read_text() == (tmp_path / "fed/config.json").read_text()


def architectures() -> dict[str, Any]:
    transformers = pytest.importorskip("transformers")
    sys.path.insert(0, str(ROOT / "tests/layouts"))
    try:
        from tiny_models import CONFIGS, EXPERTS, ROPE, SIZES
    finally:
        sys.path.pop(0)
    sliding = dict(sliding_window=16, layer_types=["sliding_attention", "full_attention"], head_dim=16)
    more = {
        "gemma3": partial(transformers.Gemma3TextConfig, **SIZES, **sliding),
        "gpt_oss": partial(transformers.GptOssConfig, **SIZES, **sliding, num_local_experts=4, num_experts_per_tok=2),
        "mamba": partial(
            transformers.MambaConfig, vocab_size=96, hidden_size=64, num_hidden_layers=2, state_size=16
        ),
        "qwen3_next": partial(
            transformers.Qwen3NextConfig, **SIZES, **EXPERTS, shared_expert_intermediate_size=64, head_dim=16,
            linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=16, linear_value_head_dim=16,
            layer_types=["linear_attention", "full_attention"],
        ),
    }  # fmt: skip
    CONFIGS.update(more)
    return {"rope": ROPE, **CONFIGS}


# Modules without measured inputs: tables of embeddings that are no head, and MLA's matrices that are used both ways.
NOT_MEASURED = ("embed_tokens", "embed_in", "wpe", "embed_q", "unembed_out")


@pytest.mark.parametrize(
    "architecture",
    [
        "llama", "llama_tied", "qwen2", "qwen2_moe", "mixtral", "gemma2", "gemma3", "gpt_oss", "phi3", "deepseek_v3",
        "gpt_neox", "cohere", "mamba", "qwen3_next",
    ],
)  # fmt: skip
def test_every_kind_of_architecture(architecture, tmp_path):
    pytest.importorskip("torch")
    architectures()
    from tiny_models import save_model
    from transformers import AutoTokenizer

    source = save_model(architecture, tmp_path / "source", vocab_size=320)
    write_tokenizer(source, 320)  # one token a byte
    calibration = tmp_path / "text.txt"
    calibration.write_text(TEXT[:6000])
    settings: dict[str, Any] = dict(quantize=3, q_group_size=32)
    mlxport.convert(source, tmp_path / "plain", dtype="float32", verify="none")
    mlxport.convert(source, tmp_path / "rtn", **settings, verify="none")
    report = mlxport.convert(source, tmp_path / "fed", **settings, calibrate=calibration)
    assert report.parity is not None and report.parity.passed
    tokens = mx.array(AutoTokenizer.from_pretrained(source)(TEXT[6000:8000])["input_ids"][:1024]).reshape(-1, 64)
    original = log_probabilities(tmp_path / "plain", tokens)
    plain, fed = (divergence(original, log_probabilities(tmp_path / name, tokens)) for name in ("rtn", "fed"))
    modules = record(tmp_path / "fed")["modules"]
    searched = [path for path, found in modules.items() if found["method"] != "error feedback"]
    assert all(path.endswith(NOT_MEASURED) for path in searched), searched
    assert len(modules) == len(report.plan.quantized)
    assert fed < 0.8 * plain


# --- resumed, repeated ----------------------------------------------------------------------------------------------


def calibrated(source: Path, out: Path, text: Path, *more: str) -> tuple[str | Path, ...]:
    return ("convert", source, out, "-q", "4", "--calibrate", text, "--verify", "none", *more)


def test_killed_between_layers_and_resumed(tmp_path, text, mlxport):
    source = write_llama(tmp_path / "source", layers=4)
    assert mlxport(*calibrated(source, tmp_path / "whole", text)).code == 0
    out = tmp_path / "out"
    process = start(*calibrated(source, out, text))
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "out.partial/calibrated").glob("model.layers.*.safetensors"))) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = {path.name: path.stat().st_ino for path in (tmp_path / "out.partial/calibrated").glob("model.layers.[01].*")}
    assert len(kept) == 2 and not out.exists()
    result = mlxport(*calibrated(source, out, text))
    assert result.code == 0 and "calibrated layers were finished already" in result.err
    assert hash_tree(out) == hash_tree(tmp_path / "whole")
    assert leftovers(tmp_path) == [] and not (out / "calibrated").exists()


def test_a_damaged_layer_is_done_again_and_another_text_begins_anew(tmp_path, text, mlxport):
    source = write_llama(tmp_path / "source", layers=3)
    out, partial_folder = tmp_path / "out", tmp_path / "out.partial/calibrated"
    code = "import mlxport.output.shards as w, os, signal\n"
    code += f"w.write_shard = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)\n{MAIN}"
    assert finish(start(*calibrated(source, out, text), code=code)).code == -signal.SIGKILL  # all layers are done
    damaged = partial_folder / "model.layers.1.safetensors"
    data = bytearray(damaged.read_bytes())
    data[-100] ^= 1
    damaged.write_bytes(data)
    shutil.copytree(partial_folder.parent, tmp_path / "again.partial")
    result = mlxport(*calibrated(source, out, text))
    assert result.code == 0 and "resumed: 3 calibrated layers" in result.err  # of four: three layers and the head
    assert mlxport(*calibrated(source, tmp_path / "whole", text)).code == 0
    assert hash_tree(out) == hash_tree(tmp_path / "whole")
    other = tmp_path / "other.txt"
    other.write_text(TEXT[4000:8000])
    assert (tmp_path / "again.partial/calibrated/model.layers.0.safetensors").is_file()
    result = mlxport(*calibrated(source, tmp_path / "again", other))
    assert result.code == 0 and "resumed" not in result.err
    assert record(tmp_path / "again")["sha256"] != record(out)["sha256"]


def test_the_record_says_what_was_done(tmp_path, text, mlxport):
    source = write_llama(tmp_path / "source")
    assert mlxport(*calibrated(source, tmp_path / "out", text)).code == 0
    found = record(tmp_path / "out")
    assert found["text"] == str(text) and found["tokens"] == 256 * found["sequences"]
    assert found["modules"]["model.embed_tokens"] == {"method": "search"}
    assert found["modules"]["lm_head"]["method"] == "error feedback"
    assert 0 < found["modules"]["model.layers.1.mlp.down_proj"]["error"] < 0.2


def test_a_recipe_with_other_modes_and_kept_modules(tmp_path, text):
    source = write_llama(tmp_path / "source")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('"*.down_proj" = 6\n"*.v_proj" = "mxfp4"\n"*.o_proj" = "keep"\n"lm_head" = "keep"\n"*" = 3\n')
    report = mlxport.convert(source, tmp_path / "out", recipe=recipe, calibrate=text)
    assert report.parity is not None and report.parity.passed
    methods = {path: found["method"] for path, found in record(tmp_path / "out")["modules"].items()}
    assert methods["model.layers.0.mlp.down_proj"] == methods["model.layers.0.self_attn.q_proj"] == "error feedback"
    assert "o_proj" not in " ".join(methods) and methods["model.layers.1.self_attn.v_proj"] == "MLX's mxfp4"


def test_a_model_that_writes_its_own_text(tmp_path, mlxport, monkeypatch):
    source = write_llama(tmp_path / "source")
    command = ("convert", source, tmp_path / "out", "-q", "3", "--calibrate", "self", "--verify", "none", "--overwrite")
    monkeypatch.setattr("mlxport.calibrate.calibration_text.MOST_TOKENS", 2048)
    assert mlxport(*command).code == 0
    first = hash_tree(tmp_path / "out")
    assert record(tmp_path / "out")["text"] == "self" and record(tmp_path / "out")["tokens"] == 2048
    small = f"import mlxport.calibrate.calibration_text as t\nt.MOST_TOKENS = 2048\n{MAIN}"
    assert finish(start(*command, code=small)).code == 0  # in another process
    assert hash_tree(tmp_path / "out") == first


def test_a_small_model_writes_half_of_the_default(tmp_path, monkeypatch):
    monkeypatch.setattr("mlxport.calibrate.calibration_text.MOST_TOKENS", 1536)
    source = write_llama(tmp_path / "source")
    mlxport.convert(source, tmp_path / "out", quantize=3, calibrate="default", verify="none")
    found = record(tmp_path / "out")
    assert found["text"] == "default" and found["written_sequences"] == found["sequences"] // 2 > 0
    mlxport.convert(source, tmp_path / "again", quantize=3, calibrate="default", verify="none")
    assert tensors(tmp_path / "out").keys() == tensors(tmp_path / "again").keys()
    for name, array in tensors(tmp_path / "out").items():
        assert mx.array_equal(array, tensors(tmp_path / "again")[name]), name
    monkeypatch.setattr("mlxport.calibrate.calibration_text.WRITES_UP_TO", 1000)  # as if it were larger
    mlxport.convert(source, tmp_path / "larger", quantize=3, calibrate="default", verify="none")
    assert record(tmp_path / "larger")["written_sequences"] == 0


def test_a_model_that_cannot_write_reads(tmp_path, monkeypatch):
    """An architecture that mlx-lm makes no cache for."""

    def no_cache(model):
        raise ValueError("no cache for this model")

    monkeypatch.setattr("mlxport.calibrate.calibration_text.MOST_TOKENS", 1536)
    monkeypatch.setattr("mlx_lm.models.cache.make_prompt_cache", no_cache)
    source = write_llama(tmp_path / "source")
    mlxport.convert(source, tmp_path / "out", quantize=3, calibrate="default", verify="none")
    assert record(tmp_path / "out")["written_sequences"] == 0
    with pytest.raises(UnsupportedError, match="no cache for this model"):
        mlxport.convert(source, tmp_path / "own", quantize=3, calibrate="self", verify="none")
    assert not (tmp_path / "own").exists()


# --- statistics -----------------------------------------------------------------------------------------------------


def test_column_power_is_the_mean_square_of_the_inputs(tmp_path, text):
    from mlxport.calibrate.calibration_text import read_calibration, tokens_of
    from mlxport.calibrate.passes import column_power
    from mlxport.layouts.mlx_lm.opening import open_model
    from mlxport.source import open_checkpoint

    source = write_llama(tmp_path / "source", dtype="F32")
    checkpoint = open_checkpoint(str(source))
    calibration = read_calibration(text)
    assert calibration is not None
    tokens = tokens_of(calibration, checkpoint)
    power = column_power(open_model(checkpoint).skeleton(), open_model(checkpoint).plain.program, tokens)
    mlxport.convert(source, tmp_path / "plain", verify="none")
    from mlx_lm.utils import load_model

    model = load_model(tmp_path / "plain")[0]
    normed = model.model.layers[0].input_layernorm(model.model.embed_tokens(tokens))
    expected = mx.square(normed.reshape(-1, normed.shape[-1])).mean(axis=0)
    np.testing.assert_allclose(power["model.layers.0.self_attn.q_proj"], expected, rtol=1e-3)
    assert power["model.layers.1.mlp.down_proj"].shape == (128,) and power["lm_head"].shape == (64,)


# --- memory ---------------------------------------------------------------------------------------------------------

PEAK = """
import sys, mlx.core as mx, mlxport
source, out, text, recipe = sys.argv[1:]
report = mlxport.convert(source, out, recipe=recipe, calibrate=text, verify="none")
print(mx.get_peak_memory(), report.plan.calibration.peak_bytes)
"""


def test_a_block_is_in_memory_not_the_model(tmp_path, text):
    """A model of 210 MB in 24 blocks of 9 MB; MLX's peak memory stays below a third of it."""
    source, layers, hidden, middle = tmp_path / "source", 24, 384, 1536
    write_side_files(source, layers, hidden_size=hidden, intermediate_size=middle, head_dim=hidden // 4)
    random = np.random.default_rng(0)
    arrays = {
        name: np.ones(hidden, np.float32)
        if array.ndim == 1
        else 0.05
        * random.standard_normal(
            [{64: hidden, 128: middle, 32: hidden // 2}.get(size, size) for size in array.shape], np.float32
        )
        for name, array in weights(layers).items()
    }
    save(source / "model.safetensors", arrays, "F32")
    size = (source / "model.safetensors").stat().st_size
    assert size > 200e6
    short = tmp_path / "short.txt"
    short.write_text(TEXT[:700])
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('"*.k_proj" = 4\n')  # every block is read and run; quantizing all of it takes minutes
    command = [sys.executable, "-c", PEAK, *map(str, (source, tmp_path / "out", short, recipe))]
    result = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert result.returncode == 0, result.stderr
    peak, planned = map(int, result.stdout.split())
    assert peak < size / 3
    assert peak < planned


# --- refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--calibrate", "default"), "no effect without --quantize"),
        (("-q", "mxfp4", "--calibrate", "default"), "here are none"),
        (("-q", "4", "--quantizer", "search", "--calibrate", "default"), "contradicts --quantizer search"),
        (("-q", "4", "--layout", "generated", "--no-cache", "--calibrate", "default"), "for mlx-lm's layout only"),
        (("-q", "4", "--calibrate", "absent.txt"), "cannot read the calibration text absent.txt"),
    ],
)
def test_options_that_cannot_apply(options, message, tmp_path, source, mlxport):
    result = mlxport("convert", source, tmp_path / "out", *options)
    assert result.code == 2 and message in result.err and "hint: " in result.err
    assert leftovers(tmp_path) == [] and not (tmp_path / "out").exists()


def test_without_a_tokenizer_nothing_is_written(tmp_path, source, mlxport):
    for path in source.glob("tokenizer*"):
        path.unlink()
    result = mlxport("convert", source, tmp_path / "out", "-q", "4", "--calibrate", "default")
    assert result.code == 1 and "no tokenizer that loads" in result.err and "--quantizer search" in result.err
    assert leftovers(tmp_path) == [] and not (tmp_path / "out").exists()


def test_nan_names_the_layer(tmp_path, text, mlxport):
    source = write_llama(tmp_path / "source", layers=3, shards=1, dtype="F32")
    path = source / "model.safetensors"
    header, data = read_raw(path)
    start_of, _ = header["model.layers.1.mlp.up_proj.weight"]["data_offsets"]
    broken = bytearray(data)
    broken[start_of : start_of + 4] = np.float32("nan").tobytes()
    write_raw(path, header, bytes(broken))
    result = mlxport(*calibrated(source, tmp_path / "out", text))
    assert result.code == 1 and "not finite" in result.err and "model.layers.1" in result.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.2.mlp.down_proj.weight"])
def test_infinite_weights_are_named(name, tmp_path, text, mlxport):
    source = write_llama(tmp_path / "source", layers=3, shards=1, dtype="F32")
    arrays = weights(3)
    arrays[name][5, 7] = np.inf
    save(source / "model.safetensors", arrays, "F32")
    result = mlxport(*calibrated(source, tmp_path / "out", text))
    assert result.code == 1 and "not finite" in result.err and name.rpartition(".")[0][:14] in result.err
    assert not (tmp_path / "out").exists()


def test_the_plan_has_time_and_memory(tmp_path, source, text, mlxport):
    command = calibrated(source, tmp_path / "out", text, "--dry-run")
    assert "calibration " in mlxport(*command).out
    plan = json.loads(mlxport(*command, "--json").out)["plan"]["calibration"]
    assert plan["tokens"] > 3000 and plan["seconds"] > 0 and plan["peak_bytes"] > 1 << 20
    assert not (tmp_path / "out").exists()
