from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from quality_models import stored

from mlxport.quality import heldout_text, open_original, open_output, place, token_windows
from mlxport.quality.module_errors import layer_errors, output_errors, weight_errors
from mlxport.quality.samples import PROMPTS, QUESTION, samples


def opened(source, output, memory_limit=None):
    original, other = open_original(source), open_output(output)
    place(original, other, memory_limit)
    return original, other


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("name", ["llama_tied", "gpt2", "qwen3_moe"])
def test_errors_of_weights_are_those_of_plain_arithmetic(sources, outputs, name, bits):
    plain, packed = stored(outputs(name, dtype="float32")), stored(outputs(name, quantize=bits))
    found = weight_errors(open_original(sources(name)), open_output(outputs(name, quantize=bits)))
    assert {m.path for m in found} == {key.removesuffix(".weight") for key, value in plain.items() if value.ndim > 1}
    for module in found:
        key = next(key for key in plain if key.removesuffix(".weight") == module.path)
        expected = np.sqrt(np.square(packed[key] - plain[key]).sum() / np.square(plain[key]).sum())
        assert module.error == pytest.approx(expected, rel=1e-4), module
        assert module.parameters == plain[key].size
    quantized = [module for module in found if module.group_size]
    routers = [module for module in quantized if module.path.endswith("mlp.gate")]  # mlx-lm gives them 8 bits
    assert len(routers) == (2 if name == "qwen3_moe" else 0) and all(module.bits == 8 for module in routers)
    others = [module for module in quantized if module not in routers]
    assert others and all((m.bits, m.group_size, m.mode) == (bits, 64, "affine") for m in others)
    assert all(m.bits_per_weight == m.bits + 2 * 32 / 64 for m in quantized)  # scales and biases are float32 here


@pytest.mark.parametrize("limit", [None, 0])
@pytest.mark.parametrize("name", ["llama_tied", "qwen3_moe"])
def test_errors_of_outputs_are_those_of_plain_arithmetic(sources, outputs, name, limit):
    """Each module's, on what the original gives it, in torch."""
    source, output = sources(name), outputs(name, quantize=4)
    ids = np.arange(2, 60)
    found = output_errors(*opened(source, output, limit), ids)
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    packed, expected = stored(output), {}

    def watch(path, module):
        def seen(_, given, made):
            other = torch.nn.functional.linear(given[0], torch.from_numpy(packed[f"{path}.weight"]).float())
            expected[path] = float((other - made).norm() / made.norm())

        module.register_forward_hook(seen)

    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and f"{path}.weight" in packed:
            watch(path, module)
    with torch.no_grad():
        model(torch.from_numpy(ids)[None])
    assert len(expected) >= 8 and {path: found[path] for path in expected} == pytest.approx(expected, rel=1e-3)
    other = {"llama_tied": "model.embed_tokens", "qwen3_moe": "model.layers.0.mlp.switch_mlp.up_proj"}[name]
    assert 0.03 < found[other] < 0.5


def test_a_calibrated_module_is_judged_by_its_outputs(sources, outputs):
    """Error feedback moves weights away from the original's to keep the outputs: no alarm."""
    source, output = sources("tiny-llama"), outputs("tiny-llama", quantize=3, calibrate="default")
    pair = opened(source, output)
    (ids, *_), _ = token_windows(source, heldout_text(), vocabulary=2048, tokens=256)
    modules = weight_errors(*pair, output_errors(*pair, ids))
    assert all(module.output_error is not None for module in modules if module.group_size)
    worst = max(modules, key=lambda module: module.error)
    assert worst.shown == worst.output_error < worst.error


def test_what_is_not_quantized_is_listed_with_its_dtype(sources, outputs):
    found = weight_errors(open_original(sources("llama")), open_output(outputs("llama", dtype="bfloat16")))
    assert {module.mode for module in found} == {"BF16"}
    assert all(0 < module.error < 4e-3 and module.bits_per_weight == 16 for module in found)
    one = next(module for module in found if module.path == "model.layers.1.mlp.up_proj")
    assert (one.layer, one.kind) == (1, "mlp.up_proj")
    assert next(module for module in found if module.layer is None).kind == "model.embed_tokens"


@pytest.mark.parametrize("limit", [None, 0])
def test_errors_of_hidden_states_are_those_of_torch(sources, outputs, limit):
    source, output = sources("llama"), outputs("llama", quantize=4)
    original, other = opened(source, output, limit)
    (ids, *_), _ = token_windows(source, heldout_text(), vocabulary=320, tokens=60)
    found = layer_errors(original, other, ids)
    states = [blocks_in_torch(source, ids, weights) for weights in (None, stored(output))]
    expected = [np.sqrt(np.square(b - a).sum() / np.square(a).sum()) for a, b in zip(*states, strict=True)]
    assert [layer.module for layer in found] == ["model.layers.0", "model.layers.1"]
    assert [layer.relative for layer in found] == pytest.approx(expected, rel=1e-3)


def blocks_in_torch(folder, ids, weights):
    """What each block of transformers' llama returns, float64."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    if weights:
        model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    kept = []
    for block in model.model.layers:
        block.register_forward_hook(lambda _, __, out: kept.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        model(torch.from_numpy(ids)[None])
    return [state.reshape(len(ids), -1).numpy() for state in kept]


@pytest.mark.parametrize("name", ["qwen3_moe", "deepseek_v3", "gemma3"])
def test_hidden_states_of_an_unchanged_model_are_equal(sources, outputs, name):
    original, other = opened(sources(name), outputs(name, dtype="float32"))
    found = layer_errors(original, other, np.arange(2, 60))
    assert len(found) == 2 and all(layer.relative == 0 for layer in found)


def test_an_unchanged_model_writes_the_same(sources, outputs):
    made, notes = samples(*opened(sources("tiny-llama"), outputs("tiny-llama")))
    assert [sample.title for sample in made[:3]] == list(PROMPTS) and len(made) == 4 and notes == ()
    assert made[3].prompt == QUESTION
    assert all(not sample.parted and sample.original == sample.output for sample in made)


def test_two_bits_write_something_else_from_where_the_first_token_differs(sources, outputs):
    source = sources("tiny-llama")
    made, _ = samples(*opened(source, outputs("tiny-llama", quantize=2)))
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    for sample in made[:3]:
        ids = tokenizer(sample.prompt, return_tensors="pt").input_ids
        written = model.generate(ids, max_new_tokens=48, do_sample=False, pad_token_id=2)[0, ids.shape[1] :]
        assert "".join(sample.original) == tokenizer.decode(written)
        assert sample.parted
        assert sample.original[0] == sample.output[0]
        assert sample.original[1] != sample.output[1]
        assert sample.original[0] == tokenizer.decode(written[: sample.same_tokens])


def test_a_text_of_ones_own_begins_the_samples(sources, outputs):
    made, _ = samples(*opened(sources("llama"), outputs("llama", quantize=4)), "one two  three\nfour")
    assert [sample.prompt for sample in made] == ["one two  three\nfour", QUESTION]
    long = " ".join(map(str, range(100)))
    made, _ = samples(*opened(sources("llama"), outputs("llama", quantize=4)), long)
    assert made[0].prompt == " ".join(map(str, range(30)))


def test_from_disk_samples_are_few_or_none(sources, outputs, monkeypatch):
    pair = opened(sources("llama"), outputs("llama", quantize=4), 0)
    monkeypatch.setattr("mlxport.quality.samples._READ_BYTES", 10 * sum(side.stored_nbytes for side in pair))
    made, _ = samples(*pair)
    assert [sample.tokens for sample in made] == [10]
    monkeypatch.setattr("mlxport.quality.samples._READ_BYTES", 0)
    made, notes = samples(*pair)
    assert made == () and "read from disk for every token" in notes[0]


def test_prompts_are_of_the_built_in_text():
    assert all(prompt in heldout_text() for prompt in [*PROMPTS.values(), QUESTION])
