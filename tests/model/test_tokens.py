"""Token ids of texts, what sequences begin with, and those that a model writes itself."""

from __future__ import annotations

import mlx.core as mx
import pytest

from checkpoints import write_llama
from mlxport.errors import TokenizerError, UnsupportedError
from mlxport.layouts.mlx_lm.opening import open_model
from mlxport.model.lazy_parameters import LazyModel, parameters_of
from mlxport.model.self_written import sample_sequences, write_sequences
from mlxport.model.tensors import computed_tensors
from mlxport.model.texts import PROBE_TEXT, calibration_text, heldout_text
from mlxport.model.tokens import any_token, first_tokens, text_ids, token_ids, within
from mlxport.model_config import ModelConfig
from mlxport.source import open_checkpoint


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("tokens") / "source", shards=1)


def test_ids_within_the_vocabulary():
    assert within([0, 5, 9], 10) == ([0, 5, 9], ())
    kept, notes = within([3, -1, 10, 9], 10)
    assert kept == [3, 9] and notes == ("2 of 4 token ids of the text lie outside the vocabulary: left out",)
    assert within([-1, 10**9], None)[0] == [10**9]


@pytest.mark.parametrize(
    ("config", "vocabulary", "expected"),
    [
        ({"bos_token_id": 7}, 10, 7),
        ({"bos_token_id": 7}, None, 7),
        ({"text_config": {"bos_token_id": 3}}, 10, 3),
        ({"bos_token_id": 7}, 7, None),
        ({"bos_token_id": None}, 10, None),
        ({"bos_token_id": True}, 10, None),
        ({}, 10, None),
    ],
)
def test_what_sequences_begin_with(config, vocabulary, expected):
    found = first_tokens(ModelConfig(config), vocabulary, 3, lambda: mx.array([1, 2, 4]))
    assert found.dtype == mx.int32 and found.tolist() == ([expected] * 3 if expected is not None else [1, 2, 4])


def test_any_token_is_drawn_from_the_whole_vocabulary():
    found = any_token(5, 400, mx.random.key(0))()
    assert sorted(set(found.tolist())) == [0, 1, 2, 3, 4]
    assert found.tolist() == any_token(5, 400, mx.random.key(0))().tolist()


def test_a_tokenizer_that_does_not_load_is_refused_as_the_caller_says(source, tmp_path):
    assert text_ids(source, "Some words.") == token_ids(source, "Some words.", TokenizerError)
    assert text_ids(tmp_path, "Some words.") is None
    with pytest.raises(TokenizerError, match="nothing here: "):
        token_ids(tmp_path, "Some words.", lambda error: TokenizerError(f"nothing here: {error}"))


def test_no_text_is_measured_on_that_was_trained_on():
    texts = [PROBE_TEXT, calibration_text(), heldout_text()]
    lines = [{line for line in text.splitlines() if len(line) > 40} for text in texts]
    assert all(lines) and not lines[2] & (lines[0] | lines[1])


def test_what_a_model_writes_is_the_same_from_the_same_key(source):
    checkpoint = open_checkpoint(str(source))
    writer = LazyModel(open_model(checkpoint).skeleton(), computed_tensors(open_model(checkpoint).plain.program))
    first, key = mx.array([4, 9, 2], dtype=mx.int32), mx.random.key(1)
    wrote = write_sequences(writer, first, 6, key, "")
    assert wrote.shape == (3, 6) and wrote[:, 0].tolist() == [4, 9, 2]
    assert not any(mx.abs(array).max() for _, array in parameters_of(writer.model))  # let go of
    writer.fill()
    assert mx.array_equal(wrote, sample_sequences(writer.model, first, 6, key))
    apart = sample_sequences(writer.model, first, 6, key, together=2)
    assert mx.array_equal(apart[:2, 0], first[:2]) and apart.shape == (3, 6)


def test_a_model_that_cannot_write_says_so_and_lets_go_of_its_weights(source):
    checkpoint = open_checkpoint(str(source))
    writer = LazyModel(open_model(checkpoint).skeleton(), computed_tensors(open_model(checkpoint).plain.program))
    writer.model.make_cache = lambda: [object(), object()]  # of an architecture that keeps something else
    with pytest.raises(UnsupportedError, match="cannot write with this model") as caught:
        write_sequences(writer, mx.array([1]), 4, mx.random.key(0), "give a text")
    assert caught.value.hint == "give a text"
    assert not any(mx.abs(array).max() for _, array in parameters_of(writer.model))
