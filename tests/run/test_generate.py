from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys

import mlx.core as mx
import pytest

from mlxport.errors import UsageError
from mlxport.run import Sampling, generate, load, read_prompt


def test_stories_go_on_as_they_should(stories):
    pieces: list[str] = []
    result = generate(stories, "Once upon a time", max_tokens=30, on_text=pieces.append)
    assert result.text.startswith(", there was a little girl named Lily.")
    assert "".join(pieces) == result.text and len(pieces) > 10
    assert result.prompt_tokens == 5 and result.generation_tokens == 30 == len(result.tokens)
    assert result.finish_reason == "length" and result.end_token is None
    assert result.prompt_tps > 0 and result.generation_tps > 0


def test_code_goes_on_as_it_should(trained):
    pieces: list[str] = []
    result = generate(trained, "class Stack", max_tokens=30, on_text=pieces.append)
    assert result.text.startswith('Widget):\n    """Return the Turtle instance')
    assert "".join(pieces) == result.text and len(pieces) > 10
    assert result.prompt_tokens == 3 and result.generation_tokens == 30 == len(result.tokens)
    assert result.finish_reason == "length" and result.end_token is None
    assert result.prompt_tps > 0 and result.generation_tps > 0


def test_same_tokens_as_torch(trained, trained_source):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(trained_source)
    inputs = tokenizer("class Stack", return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        out = AutoModelForCausalLM.from_pretrained(trained_source, dtype=torch.float32).generate(
            **inputs, max_new_tokens=60, do_sample=False
        )
    result = generate(trained, "class Stack", max_tokens=60)
    assert list(result.tokens) == out[0, inputs["input_ids"].shape[1] :].tolist()


def test_peak_memory_counts_the_weights_and_starts_anew(trained):
    weights = sum(array.nbytes for array in mx.load(str(trained / "model.safetensors")).values())
    ballast = mx.zeros((64, 1024, 1024))
    mx.eval(ballast)
    del ballast
    mx.clear_cache()
    result = generate(trained, "def", max_tokens=2)
    assert weights <= result.peak_memory < weights + 64 * 1024 * 1024
    assert result.peak_rss > result.peak_memory


def test_the_chat_template_is_used_unless_ignored(llama):
    loaded = load(llama)
    templated = loaded.tokenizer.encode("<|user|>hi<|end|>\n<|assistant|>", add_special_tokens=False)
    assert generate(loaded, "hi", max_tokens=1).prompt_tokens == len(templated) == 6
    assert generate(loaded, "hi", max_tokens=1, ignore_chat_template=True).prompt_tokens == 2
    assert generate(loaded, "hi", max_tokens=1, system_prompt="Be brief").prompt_tokens == 6 + len("Be brief") + 3


def test_stops_at_the_end_of_sequence(llama, tmp_path):
    first = generate(llama, "hi", max_tokens=12)
    end = first.tokens[5]
    folder = shutil.copytree(llama, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": end}))
    result = generate(folder, "hi", max_tokens=12)
    cut = first.tokens.index(end)
    assert result.finish_reason == "stop" and result.end_token == end
    assert result.tokens == first.tokens[:cut] and result.generation_tokens == cut + 1


def test_a_seed_makes_sampling_reproducible(llama):
    loaded = load(llama)
    options = {"max_tokens": 20, "temp": 1.0, "top_p": 0.95}
    one = generate(loaded, "hi", seed=1, **options)
    generate(loaded, "something in between", seed=5, **options)
    assert generate(loaded, "hi", seed=1, **options).tokens == one.tokens
    assert generate(loaded, "hi", seed=2, **options).tokens != one.tokens


def test_sampling_is_mlx_lms(llama):
    from mlx_lm import stream_generate
    from mlx_lm.sample_utils import make_sampler

    loaded = load(llama)
    mx.random.seed(7)
    sampler = make_sampler(temp=0.8, top_p=0.9, min_p=0.01, top_k=40)
    prompt = loaded.tokenizer.encode("hi", add_special_tokens=False)
    expected = [
        r.token for r in stream_generate(loaded.model, loaded.tokenizer, prompt, max_tokens=15, sampler=sampler)
    ]
    result = generate(
        loaded, "hi", max_tokens=15, temp=0.8, top_p=0.9, min_p=0.01, top_k=40, seed=7, ignore_chat_template=True
    )
    assert list(result.tokens) == expected[: len(result.tokens)] and len(result.tokens) >= 14


def test_top_k_of_the_whole_vocabulary_is_off(llama):
    loaded = load(llama)
    options = {"max_tokens": 10, "temp": 1.0, "seed": 3}
    assert generate(loaded, "hi", top_k=10_000, **options).tokens == generate(loaded, "hi", **options).tokens


def test_a_long_prompt_warns(llama):
    loaded = load(llama)
    with pytest.warns(UserWarning, match="256") as seen:
        generate(loaded, "x" * 300, max_tokens=1)
    assert seen[0].filename == __file__
    said: list[str] = []
    generate(loaded, "x" * 300, max_tokens=1, on_warning=said.append)
    assert len(said) == 1 and "the model was made for 256" in said[0]


@pytest.mark.parametrize("prompt", ["", " \n\t"])
def test_an_empty_prompt_is_refused(prompt):
    with pytest.raises(UsageError, match="empty"):
        generate("nowhere", prompt)


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 0},
        {"max_tokens": -1},
        {"temp": -0.1},
        {"temp": float("nan")},
        {"temp": float("inf")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": float("nan")},
        {"min_p": -0.1},
        {"min_p": 1.5},
        {"top_k": -1},
        {"seed": -1},
    ],
)
def test_options_out_of_range_are_refused_by_name_before_loading(options):
    with pytest.raises(UsageError) as caught:
        generate("nowhere", "hi", **options)
    assert next(iter(options)) in caught.value.message and caught.value.exit_code == 2
    with pytest.raises(UsageError):
        Sampling(**options)


def test_a_system_prompt_without_template_is_refused(trained, llama):
    with pytest.raises(UsageError, match="the tokenizer has none"):
        generate(trained, "hi", system_prompt="Be brief")
    with pytest.raises(UsageError, match="--ignore-chat-template"):
        generate(llama, "hi", system_prompt="Be brief", ignore_chat_template=True)


def test_a_template_that_refuses_is_an_error_with_a_hint(llama, tmp_path):
    folder = shutil.copytree(llama, tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no system role here') }}")
    with pytest.raises(UsageError, match="no system role here") as caught:
        generate(folder, "hi", system_prompt="x")
    assert "--system-prompt" in caught.value.hint


def test_a_mixture_of_experts_in_half_precision_writes_on_the_cpu(half_mixture, monkeypatch):
    from mlxport.transform import cpu_experts

    monkeypatch.setitem(cpu_experts._state, "said", 0)
    loaded = load(half_mixture)
    said: list[str] = []
    with mx.stream(mx.cpu):
        result = generate(loaded, "hi there", max_tokens=6, on_warning=said.append)
        logits = loaded.model(mx.array([[1, 2, 3]]))
        loaded.model.set_dtype(mx.float32)
        expected = loaded.model(mx.array([[1, 2, 3]]))
    assert result.generation_tokens >= 1 and logits.dtype == mx.bfloat16
    error = mx.abs(logits.astype(mx.float32) - expected).max().item()
    assert error < 0.05 * mx.abs(expected).max().item()
    assert mx.default_device() != mx.Device(mx.cpu) or [line for line in said if "float32" in line] == said != []
    assert generate(loaded, "hi", max_tokens=2, on_warning=said.append) and len(said) <= 1


def test_a_prompt_without_tokens_is_refused(llama, tmp_path):
    folder = shutil.copytree(llama, tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{# nothing #}")
    with pytest.raises(UsageError, match="makes no tokens"):
        generate(folder, "hi")


def test_the_first_spaces_stay(trained):
    """Of code most of all: what is printed is what decode gives of the tokens."""
    pieces: list[str] = []
    result = generate(trained, "class Stack:\n", max_tokens=12, ignore_chat_template=True, on_text=pieces.append)
    assert result.text == load(trained).tokenizer.decode(list(result.tokens)) == "".join(pieces)
    assert result.text.startswith("    ")


def test_prompt_from_stdin_and_escapes():
    assert read_prompt("-", io.StringIO("a\\nb\n")) == "a\\nb\n"
    assert read_prompt("a\\nb\\tc") == "a\nb\tc"


def test_result_is_json(llama):
    result = generate(llama, "hi", max_tokens=3)
    assert json.loads(json.dumps(result.to_json()))["tokens"] == list(result.tokens)
    assert "Prompt: 6 tokens" in result.summary() and "GB in the process" in result.summary()


def test_importing_the_package_is_light():
    heavy = "{'mlx', 'mlx_lm', 'transformers', 'torch', 'numpy', 'huggingface_hub', 'rich'}"
    code = f"import sys, mlxport.run; sys.exit(str({heavy} & set(sys.modules)) if {heavy} & set(sys.modules) else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
