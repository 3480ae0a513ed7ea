from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np
import pytest

from mlxport.errors import TokenizerError, UsageError
from mlxport.run import AutoModelForCausalLM, AutoTokenizer

PROMPTS = ["def read_lines(path):", "import os", "class Stack"]


@pytest.fixture(scope="module")
def torch_model(trained_source):
    import torch
    from transformers import AutoModelForCausalLM as TorchAuto

    # Tiny matrices: more threads than free cores only wait for each other.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield TorchAuto.from_pretrained(trained_source, dtype=torch.float32).eval()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(llama):
    return AutoModelForCausalLM.from_pretrained(llama)


def tokenizer_of(folder, side: str = "left"):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = side
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token
    return tokenizer


def torch_generate(torch_model, inputs, **options):
    import torch

    with torch.no_grad():
        tensors = {name: torch.tensor(inputs[name]) for name in ("input_ids", "attention_mask")}
        return torch_model.generate(**tensors, do_sample=False, **options).numpy()


def test_greedy_is_what_transformers_generates(trained, torch_model):
    tokenizer = tokenizer_of(trained)
    inputs = tokenizer(PROMPTS[0], return_tensors="np")
    out = AutoModelForCausalLM.from_pretrained(trained).generate(**inputs, max_new_tokens=80)
    assert out.dtype == np.int64 and out.shape == (1, 28)  # it ends by itself
    assert np.array_equal(out, torch_generate(torch_model, inputs, max_new_tokens=80))
    text = tokenizer.decode(out[0], skip_special_tokens=True)
    assert text.startswith("def read_lines(path): # no line\n        return None\n    if not path:")


@pytest.mark.parametrize("end", [1, 203, [303, 333]])
def test_a_padded_batch_is_what_transformers_generates_padding_included(trained, torch_model, end):
    inputs = tokenizer_of(trained)(PROMPTS, padding=True, return_tensors="np")
    assert 0 in inputs["attention_mask"]
    options = {"max_new_tokens": 30, "eos_token_id": end, "pad_token_id": 2}
    out = AutoModelForCausalLM.from_pretrained(trained).generate(**inputs, **options)
    expected = torch_generate(torch_model, inputs, **options)
    assert out.shape == expected.shape and np.array_equal(out, expected)


def test_early_rows_are_filled_with_the_end_of_sequence_when_there_is_no_padding_token(trained, torch_model):
    inputs = tokenizer_of(trained)(PROMPTS[:2], padding=True, return_tensors="np")
    options = {"max_new_tokens": 30, "eos_token_id": 203}
    out = AutoModelForCausalLM.from_pretrained(trained).generate(**inputs, **options)
    assert np.array_equal(out, torch_generate(torch_model, inputs, pad_token_id=203, **options))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("sampled", [{}, {"temperature": 0.9, "top_p": 0.9, "seed": 11}])
def test_a_batch_equals_its_rows_one_by_one(llama, model, side, sampled):
    tokenizer = tokenizer_of(llama, side)
    texts = ["hi", "a longer prompt", "mid"]
    inputs = tokenizer(texts, padding=True, return_tensors="np")
    width = inputs["input_ids"].shape[1]
    out = model.generate(**inputs, max_new_tokens=12, **sampled)
    assert np.array_equal(out[:, :width], inputs["input_ids"])
    for index, text in enumerate(texts):
        options = {**sampled, "seed": sampled["seed"] + index} if sampled else {}
        alone = tokenizer(text, return_tensors="np")
        row = model.generate(**alone, max_new_tokens=12, **options)[0, alone["input_ids"].shape[1] :]
        assert np.array_equal(out[index, width : width + len(row)], row)


def test_without_a_mask_padding_is_recognised_as_in_transformers(trained, torch_model):
    inputs = tokenizer_of(trained)(PROMPTS, padding=True, return_tensors="np")
    model = AutoModelForCausalLM.from_pretrained(trained)
    masked = model.generate(**inputs, max_new_tokens=10, pad_token_id=2)
    assert np.array_equal(model.generate(inputs["input_ids"], max_new_tokens=10, pad_token_id=2), masked)


def test_every_kind_of_input_gives_the_same(model):
    rows = [[71, 72, 73], [80, 81, 82]]
    expected = model.generate(np.array(rows), max_new_tokens=5)
    for ids in (rows, mx.array(rows), np.array(rows, dtype=np.int32), tuple(rows)):
        assert np.array_equal(model.generate(ids, max_new_tokens=5), expected)
    assert np.array_equal(model.generate(rows[0], max_new_tokens=5), expected[:1])


def test_temperature_decides_unless_do_sample_does(model):
    ids = [[71, 72, 73]]
    greedy = model.generate(ids, max_new_tokens=16)
    for options in ({"temperature": 0}, {"temperature": None}, {"do_sample": False}):
        assert np.array_equal(model.generate(ids, max_new_tokens=16, **options), greedy)
    one = model.generate(ids, max_new_tokens=16, temperature=1.5, seed=4)
    assert not np.array_equal(one, greedy)
    assert np.array_equal(model.generate(ids, max_new_tokens=16, temperature=1.5, seed=4), one)
    assert not np.array_equal(model.generate(ids, max_new_tokens=16, temperature=1.5, seed=5), one)
    at_one = model.generate(ids, max_new_tokens=16, do_sample=True, seed=4)
    assert np.array_equal(model.generate(ids, max_new_tokens=16, temperature=1.0, seed=4), at_one)
    with pytest.warns(UserWarning, match="temperature=0.7 is not used"):
        assert np.array_equal(model.generate(ids, max_new_tokens=16, do_sample=False, temperature=0.7), greedy)


def test_identical_rows_are_sampled_differently(model):
    out = model.generate([[71, 72], [71, 72]], max_new_tokens=16, temperature=1.5, seed=4)
    assert not np.array_equal(out[0], out[1])


def test_unknown_options_are_named(model):
    with pytest.raises(TypeError, match="num_beams"):
        model.generate([[71]], num_beams=4)


def test_token_type_ids_are_accepted(model):
    ids = np.array([[71, 72]])
    out = model.generate(ids, max_new_tokens=3, token_type_ids=np.zeros_like(ids))
    assert np.array_equal(out, model.generate(ids, max_new_tokens=3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": [[1, 2], [3]]}, "different lengths"),
        ({"input_ids": [[0.5, 1.5]]}, "integers"),
        ({"input_ids": []}, "integers"),
        ({"input_ids": np.zeros((1, 0), dtype=np.int64)}, "integers"),
        ({"input_ids": np.zeros((1, 1, 1), dtype=np.int64)}, "integers"),
        ({"input_ids": [[1, 2]], "attention_mask": [[1]]}, "the shape of input_ids"),
        ({"input_ids": [[1, 2]], "attention_mask": [[0, 0]]}, "all padding"),
        ({"input_ids": [[1, 2, 3]], "attention_mask": [[1, 0, 1]]}, "a hole"),
        ({"input_ids": [[1]], "max_new_tokens": 0}, "max_tokens"),
        ({"input_ids": [[1]], "temperature": -1.0}, "temp"),
        ({"input_ids": [[1]], "top_p": 0.0}, "top_p"),
        ({"input_ids": [[1]], "do_sample": True, "temperature": 0.0}, "temperature 0"),
        ({"input_ids": [[1], [2]], "streamer": object()}, "one row"),
    ],
)
def test_wrong_input_is_refused(model, arguments, message):
    with pytest.raises(UsageError, match=message):
        model.generate(**arguments)


@pytest.mark.parametrize("token", [-1, 261, 100_000])
def test_ids_outside_of_the_vocabulary_are_refused(model, token):
    with pytest.raises(TokenizerError, match="outside of the vocabulary of 261"):
        model.generate([[71, token]])


@dataclass
class Recorder:
    pieces: list[list[int]] = field(default_factory=list)
    ended: bool = False

    def put(self, value) -> None:
        self.pieces.append(np.array(value).reshape(-1).tolist())

    def end(self) -> None:
        self.ended = True


def test_a_streamer_gets_the_prompt_and_each_token(llama, model, capsys):
    recorder = Recorder()
    out = model.generate([[71, 72]], max_new_tokens=4, streamer=recorder)
    assert recorder.pieces == [[71, 72], *([int(token)] for token in out[0, 2:])] and recorder.ended
    from transformers import TextStreamer

    tokenizer = tokenizer_of(llama)
    model.generate([[71, 72]], max_new_tokens=4, streamer=TextStreamer(tokenizer, skip_prompt=True))
    assert capsys.readouterr().out.strip() == tokenizer.decode(out[0, 2:]).strip()


def test_logits_are_those_of_torch(trained, torch_model):
    import torch

    ids = np.array([[0, 403, 407, 261, 378]])
    logits = AutoModelForCausalLM.from_pretrained(trained)(ids)
    assert isinstance(logits, mx.array) and logits.shape == (1, 5, 2048)
    with torch.no_grad():
        expected = torch_model(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(np.array(logits), expected, atol=1e-4)


def test_config_and_module_are_there(model):
    assert model.config["model_type"] == "llama"
    assert type(model.model).__module__ == "mlx_lm.models.llama"


def test_generation_config_gives_the_end_of_sequence(llama, tmp_path, model):
    first = model.generate([[71, 72, 73]], max_new_tokens=8)[0, 3:].tolist()
    folder = shutil.copytree(llama, tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [first[2]]}))
    out = AutoModelForCausalLM.from_pretrained(folder).generate([[71, 72, 73]], max_new_tokens=8)[0, 3:].tolist()
    assert out == first[: first.index(first[2]) + 1]


def test_a_model_without_attention_generates_padded_batches_too(mamba):
    model = AutoModelForCausalLM.from_pretrained(mamba)
    inputs = tokenizer_of(mamba)(["hi", "longer"], padding=True, return_tensors="np")
    out = model.generate(**inputs, max_new_tokens=5)
    alone = model.generate(tokenizer_of(mamba)(["hi"], return_tensors="np")["input_ids"], max_new_tokens=5)
    assert np.array_equal(out[0, -5:], alone[0, -5:])
