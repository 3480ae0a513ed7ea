"""Language models that mlx-lm has no code for generate, in mlx-lm itself, what transformers generates."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch
import transformers
from mlx_lm.generate import BatchGenerator, generate_step
from mlx_lm.models.cache import load_prompt_cache, make_prompt_cache, save_prompt_cache, trim_prompt_cache
from mlx_lm.utils import load_model

import mlxport
from checkpoints import write_tokenizer
from language_models import CONFIGS, greedy, save_language_model
from mlxport.errors import UnsafeError, UnsupportedError

PROMPTS = [[5, 40, 31, 7, 300, 22, 90, 14, 15, 16, 200], [9, 8, 7]]
TOKENS = 12
EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny-llama"


@pytest.fixture(scope="module")
def ported(tmp_path_factory):
    """Original, source folder and output of a model, made once."""
    made = {}

    def get(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            model = save_language_model(name, folder / "hf")
            report = mlxport.convert(folder / "hf", folder / "mlx")
            made[name] = model, folder, report
        return made[name]

    return get


def loaded(folder):
    return load_model(folder / "mlx", trust_remote_code=True)[0]


def tokens(model, prompt, **options):
    steps = generate_step(mx.array(prompt), model, max_tokens=TOKENS, **options)
    return [int(token) for (token, _), _ in zip(steps, range(TOKENS), strict=False)]


@pytest.mark.parametrize("name", CONFIGS)
def test_mlx_lm_generates_the_same_tokens(ported, name):
    original, folder, report = ported(name)
    assert report.parity.passed and json.loads((folder / "mlx/mlxport.json").read_text())["options"]["layout"] == (
        "generated-lm"
    )
    model = loaded(folder)
    for prompt in PROMPTS:
        wanted = greedy(original, prompt, TOKENS)
        assert len(set(wanted)) > 2  # a model that repeats itself would hide much
        assert tokens(model, prompt) == wanted
        assert tokens(model, prompt, prefill_step_size=4) == wanted


@pytest.mark.parametrize("name", ["bloom", "opt"])
def test_prompts_of_different_lengths_in_a_batch(ported, name):
    original, folder, _ = ported(name)
    generator = BatchGenerator(loaded(folder), stop_tokens=None)
    uids = generator.insert(PROMPTS, [TOKENS] * len(PROMPTS))
    found = {uid: [] for uid in uids}
    while any(len(got) < TOKENS for got in found.values()):
        for response in generator.next()[1]:
            found[response.uid].append(int(response.token))
    assert [found[uid] for uid in uids] == [greedy(original, prompt, TOKENS) for prompt in PROMPTS]


def test_a_cache_is_saved_loaded_and_trimmed(ported, tmp_path):
    original, folder, _ = ported("opt")
    model, prompt = loaded(folder), PROMPTS[0]
    cache = make_prompt_cache(model)
    model(mx.array(prompt)[None], cache=cache)
    save_prompt_cache(str(tmp_path / "cache.safetensors"), cache)
    again = load_prompt_cache(str(tmp_path / "cache.safetensors"))
    assert trim_prompt_cache(again, 3) == 3
    assert tokens(model, prompt[-3:], prompt_cache=again) == greedy(original, prompt, TOKENS)


def test_logits_without_a_cache_are_those_of_the_original(ported):
    original, folder, _ = ported("bloom")
    with torch.no_grad():
        wanted = original(torch.tensor([PROMPTS[0]])).logits.numpy()
    np.testing.assert_allclose(np.array(loaded(folder)(mx.array([PROMPTS[0]]))), wanted, atol=2e-4)


def test_the_source_reads_as_that_of_mlx_lm(ported):
    source = (ported("falcon")[1] / "mlx/model.py").read_text()
    tree = ast.parse(source)
    classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    assert len(classes) == len(set(classes)) and "FalconDecoderLayer" in classes
    assert "for layer, c in zip(self.h, cache" in source
    assert "mask = create_attention_mask(input_ids, cache[0])" in source
    assert "def make_cache(self):\n        return [KVCache() for _ in self.layers]" in source


def test_a_quantized_output_is_that_of_the_same_weights_in_torch(tmp_path):
    save_language_model("opt", tmp_path / "hf", noise=0.1)
    report = mlxport.convert(tmp_path / "hf", tmp_path / "q", quantize=4, q_group_size=32)
    assert report.parity.passed and report.plan.bits_per_weight < 12
    config = json.loads((tmp_path / "q/config.json").read_text())
    assert config["quantization"]["bits"] == 4 and config["model_file"] == "model.py"
    found = report.parity.generation
    assert found.reference == "the stored weights in torch, with its cache" and found.equal == found.tokens == 32


def test_a_trained_model_by_both_routes_is_one_model_at_4_bits(tmp_path):
    prompt = mx.array([[5, 40, 31, 7, 300, 22, 90, 14, 15, 16, 200]])
    logits, texts = {}, {}
    for layout in ("mlx-lm", "generated-lm"):
        mlxport.convert(EXAMPLE, tmp_path / layout, layout=layout, quantize=4, q_group_size=32, verify="none")
        model = load_model(tmp_path / layout, trust_remote_code=True)[0]
        logits[layout] = np.array(model(prompt).astype(mx.float32))
        texts[layout] = [tokens(model, prompt[0]), tokens(model, prompt[0], kv_bits=8, kv_group_size=32)]
    assert json.loads((tmp_path / "generated-lm/config.json").read_text())["model_file"] == "model.py"
    np.testing.assert_array_equal(*logits.values())
    assert texts["mlx-lm"] == texts["generated-lm"]


def test_mlx_lms_own_command_trains_an_adapter(ported, tmp_path):
    _, folder, _ = ported("opt")
    row = json.dumps({"text": "w5 w40 w31 w7 w300 w22 w90 w14 " * 3})
    for name in ("train", "valid"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join([row] * 4) + "\n")
    run = [sys.executable, "-m", "mlx_lm", "lora", "--model", str(folder / "mlx"), "--trust-remote-code", "--train"]
    options = {"data": tmp_path, "iters": 10, "batch-size": 2, "learning-rate": 1e-2, "num-layers": 2}
    options |= {"steps-per-report": 5, "adapter-path": tmp_path / "adapters"}
    given = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    done = subprocess.run([*run, *given], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = re.sub(r"\x1b\[[\d;]*m", "", done.stdout)
    losses = [float(found) for found in re.findall(r"\bval\s+([\d.]+)", said)]
    assert len(losses) == 2 and losses[1] < losses[0], said
    assert (tmp_path / "adapters/adapters.safetensors").stat().st_size > 0


def test_it_generates_where_it_was_written_and_asks_for_trust_elsewhere(ported, request, tmp_path, monkeypatch):
    _, folder, _ = ported("opt")
    given = [str(folder / "mlx"), "--prompt", "a", "--max-tokens", "4"]
    assert request.getfixturevalue("mlxport")("generate", *given).code == 0
    monkeypatch.setenv("MLXPORT_CACHE", str(tmp_path))
    run = [sys.executable, "-m", "mlxport", "generate", *given]
    refused = subprocess.run(run, capture_output=True, text=True)
    assert refused.returncode == 1 and "--trust-remote-code" in refused.stderr
    assert subprocess.run([*run, "--trust-remote-code"], capture_output=True).returncode == 0


def test_verify_compares_it_again(ported):
    _, folder, _ = ported("bloom")
    assert mlxport.verify(folder / "mlx", folder / "hf").passed


def test_text_generated_with_caches_is_part_of_the_verification(ported):
    _, folder, report = ported("opt")
    found = report.parity.generation
    assert (found.tokens, found.equal) == (32, 32) and found.reference == "the original, with its cache"
    assert found.summary() == "generation: 32 tokens equal; chunks, batch, saved cache, trim: ok"
    recorded = json.loads((folder / "mlx/mlxport.json").read_text())["parity"]["generation"]
    assert recorded["equal"] == 32 and [check["name"] for check in recorded["checks"]] == [
        "tokens", "chunks", "batch", "saved cache", "trim",
    ]  # fmt: skip
    card = (folder / "mlx/README.md").read_text()
    assert "- generation: 32 of 32 tokens as the original's; equal: tokens, chunks, batch, saved cache, trim\n" in card


def test_from_disk_as_many_steps_as_are_affordable(ported):
    _, folder, _ = ported("opt")
    found = mlxport.verify(folder / "mlx", folder / "hf", mode="layerwise").generation
    assert found.reference == "the original, whole texts" and not found.failures
    assert (found.tokens, found.equal) == (32, 32)


def test_a_model_that_is_wrong_in_batches_alone_is_not_verified(ported, request, tmp_path):
    import shutil

    _, folder, _ = ported("opt")
    shutil.copytree(folder / "mlx", tmp_path / "mlx")
    with (tmp_path / "mlx/model.py").open("a") as file:
        file.write("\n_right = Model.__call__\nModel.__call__ = lambda self, *args, **kwargs: _right(")
        file.write("self, *args, **kwargs)[::-1]\n")
    given = [str(tmp_path / "mlx"), "--against", str(folder / "hf"), "--trust-remote-code"]
    found = request.getfixturevalue("mlxport")("verify", *given)
    assert found.code == 3 and "generation, batch: token 2 of a prompt of 11 tokens differs" in found.err


def test_without_a_cache_it_computes_whole_sequences(ported, tmp_path):
    original, folder, _ = ported("opt")
    mlxport.convert(folder / "hf", tmp_path / "out", cache=False)
    model = mlxport.load(tmp_path / "out")
    with torch.no_grad():
        wanted = original(torch.tensor([PROMPTS[1]])).logits.numpy()
    np.testing.assert_allclose(np.array(model(mx.array([PROMPTS[1]]))["logits"]), wanted, atol=2e-4)


def test_a_changed_source_is_not_run(ported, tmp_path):
    _, folder, _ = ported("opt")
    shutil.copytree(folder / "mlx", tmp_path / "mlx")
    with (tmp_path / "mlx/model.py").open("a") as file:
        file.write("\nopen('/nonexistent/written', 'w')\n")
    with pytest.raises(UnsafeError, match="model.py"):
        mlxport.AutoModelForCausalLM.from_pretrained(tmp_path / "mlx")


def test_the_layout_is_refused_where_nothing_is_remembered(tmp_path):
    config = transformers.BertConfig(
        vocab_size=320, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    transformers.BertLMHeadModel(config).save_pretrained(tmp_path / "hf")
    write_tokenizer(tmp_path / "hf", 320)
    with pytest.raises(UnsupportedError, match="is_decoder") as error:
        mlxport.convert(tmp_path / "hf", tmp_path / "out")
    assert "--no-cache" in (error.value.hint or "")
    assert not (tmp_path / "out").exists()


def small(config_class, **changes):
    sizes = dict(vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    return config_class(**sizes | dict(num_key_value_heads=2, max_position_embeddings=96) | changes)


OTHERWISE = {  # mlx-lm has these: one says so by its config, one drops weights that count
    "glm": (
        partial(small, transformers.GlmConfig, head_dim=8, partial_rotary_factor=0.5, pad_token_id=0), "partial_rotary",
    ),
    "ernie4_5_moe": (
        partial(
            small, transformers.Ernie4_5_MoeConfig, moe_num_experts=4, moe_k=2, moe_intermediate_size=16,
            moe_layer_start_index=0,
        ),
        "e_score_correction_bias",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERWISE)
def test_what_mlx_lm_would_compute_otherwise_brings_its_own_source(name, tmp_path):
    make, reason = OTHERWISE[name]
    torch.manual_seed(3)
    original = transformers.AutoModelForCausalLM.from_config(make()).eval()
    with torch.no_grad():
        for parameter in original.parameters():
            parameter.add_(torch.rand_like(parameter) * 0.1)
    original.save_pretrained(tmp_path / "hf")
    write_tokenizer(tmp_path / "hf", 320)
    report = mlxport.convert(tmp_path / "hf", tmp_path / "mlx")
    assert report.parity.passed
    assert any(reason in note and "generated-lm" in note for note in report.notes)
    with pytest.raises(UnsupportedError, match=reason):
        mlxport.convert(tmp_path / "hf", tmp_path / "other", layout="mlx-lm")


def test_half_precision_beyond_a_window_computes_what_the_same_weights_compute_in_float32(tmp_path):
    import transformers

    from checkpoints import write_tokenizer

    torch.manual_seed(5)
    config = transformers.Gemma3TextConfig(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, sliding_window=60, layer_types=["sliding_attention", "full_attention"],
        max_position_embeddings=256, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim > 1 else 0.1))
    model.save_pretrained(tmp_path / "hf")
    write_tokenizer(tmp_path / "hf", 320)
    report = mlxport.convert(tmp_path / "hf", tmp_path / "out", layout="generated-lm", dtype="bfloat16")
    assert "astype(mx.bfloat16)" in (tmp_path / "out/model.py").read_text()  # where torch casts back from float32
    original, same = report.parity.comparisons
    assert original.row == "bfloat16" and same.relative < 1e-3
    assert report.parity.generation.summary() == (
        "generation: 32 tokens equal; chunks, batch, saved cache, trim, window: ok"
    )
