"""One reader of configs: every stage that asks a config gets the same answer, whatever the config looks like."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers

from mlxport.allocate.limits import make_target
from mlxport.calibrate.calibration_text import read_calibration, tokens_of
from mlxport.distill.distill_settings import DistillSettings
from mlxport.distill.training_text import sequence_length
from mlxport.errors import ConfigError, UsageError
from mlxport.fit import plan_for
from mlxport.inspect.inspection import inspect_checkpoint
from mlxport.model.tokens import first_tokens
from mlxport.model_config import ModelConfig
from mlxport.parity.probe_length import affordable_length
from mlxport.quality.opened import text_limit
from mlxport.run.load import LoadedModel
from mlxport.source import open_checkpoint
from mlxport.source.tokenizer_files import embedding_rows
from mlxport.types import Checkpoint

TINY = Path(__file__).parents[1] / "examples" / "tiny-llama"
FAR = 4096  # the default of transformers' class, where the file is silent
FIELDS = {"max_position_embeddings", "vocab_size", "bos_token_id", "eos_token_id", "hidden_size", "num_hidden_layers"}

CONTEXTS: Mapping[str, tuple[Mapping[str, Any], int | None]] = {
    "today's name": ({"max_position_embeddings": 64}, 64),
    "gpt2": ({"n_positions": 64, "n_ctx": 64}, 64),
    "mpt": ({"max_seq_len": 64}, 64),
    "chatglm": ({"seq_length": 64}, 64),
    "n_ctx": ({"n_ctx": 64}, 64),
    "the first name counts": ({"seq_length": 32, "max_position_embeddings": 64}, 64),
    "text_config": ({"text_config": {"max_position_embeddings": 64}}, 64),
    "the text part counts": ({"max_position_embeddings": 128, "text_config": {"n_positions": 64}}, 64),
    "a silent text part": ({"max_position_embeddings": 64, "text_config": {}}, 64),
    "llm_config": ({"llm_config": {"max_seq_len": 64}}, 64),
    "language_config": ({"language_config": {"max_position_embeddings": 64}}, 64),
    "thinker": ({"thinker_config": {"text_config": {"max_position_embeddings": 64}}}, 64),
    "a decoder of words": ({"decoder": {"vocab_size": 512, "max_position_embeddings": 64}}, 64),
    "a decoder of something else": ({"max_position_embeddings": 64, "decoder": {"n_positions": 32}}, 64),
    "a part that is none": ({"max_position_embeddings": 64, "text_config": [1], "llm_config": "llama"}, 64),
    "an odd value before a good one": ({"max_position_embeddings": "128", "n_positions": 64}, 64),
    "an odd value in the text part": ({"n_positions": 64, "text_config": {"n_positions": None}}, 64),
    "nothing": ({}, None),
    **{
        f"{value!r}": ({"max_position_embeddings": value}, None)
        for value in (None, "64", True, 0, -1, 64.0, math.inf, [64], {"a": 64})
    },
}


@pytest.fixture(scope="module")
def tiny() -> Checkpoint:
    return open_checkpoint(TINY)


def with_config(tiny: Checkpoint, given: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint with nothing in its config about what is asked for but ``given``."""
    return replace(tiny, config={**{key: value for key, value in tiny.config.items() if key not in FIELDS}, **given})


@pytest.mark.parametrize(("given", "limit"), CONTEXTS.values(), ids=CONTEXTS)
def test_every_stage_knows_the_same_context_length(given, limit, tiny):
    checkpoint = with_config(tiny, given)
    config = dict(checkpoint.config)
    assert checkpoint.model_config.context_length == limit
    assert inspect_checkpoint(checkpoint).context_length == limit
    assert LoadedModel(TINY, config, None, None).context_length == limit  # generate and chat
    assert text_limit(config) == limit  # quality
    assert sequence_length(DistillSettings(steps=1, length=256), config) == (limit or 256)
    assert tokens_of(read_calibration("default"), checkpoint).shape[1] == (limit or 512)
    theirs = transformers.LlamaConfig(max_position_embeddings=FAR)
    assert affordable_length(1, checkpoint.model_config, theirs)[0] == (limit or 512)  # parity
    target = make_target(fit="M2 8GB", context=100_000)
    if limit is None:
        target.check(config)
    else:
        with pytest.raises(UsageError, match=f"at most {limit} tokens"):
            target.check(config)


@pytest.mark.parametrize("name", ["today's name", "gpt2", "mpt", "chatglm", "n_ctx"])
def test_fit_plans_within_it(name, tiny, tmp_path):
    given, limit = CONTEXTS[name]
    config = {key: value for key, value in tiny.config.items() if key != "max_position_embeddings"}
    for path in (*tiny.side_files, *tiny.weight_files):
        shutil.copy(path, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | given))
    with pytest.raises(UsageError, match=f"at most {limit} tokens"):
        plan_for(tmp_path, device="M2 8GB", context=limit + 1)


VOCABULARIES: Mapping[str, tuple[Mapping[str, Any], int | None]] = {
    "at the root": ({"vocab_size": 300}, 300),
    "in the text part": ({"text_config": {"vocab_size": 300}}, 300),
    "the text part counts": ({"vocab_size": 900, "text_config": {"vocab_size": 300}}, 300),
    "in a decoder": ({"decoder": {"vocab_size": 300}}, 300),
    "in llm_config": ({"llm_config": {"vocab_size": 300}}, 300),
    "text": ({"vocab_size": "300"}, None),
    "a bool": ({"vocab_size": True}, None),
    "negative": ({"vocab_size": -300}, None),
    "nothing": ({}, None),
}


@pytest.mark.parametrize(("given", "size"), VOCABULARIES.values(), ids=VOCABULARIES)
def test_every_stage_knows_the_same_vocabulary(given, size, tiny):
    import mlx.core as mx

    checkpoint = replace(with_config(tiny, given), tensors={})
    assert checkpoint.model_config.vocabulary == size
    assert embedding_rows(checkpoint.config, {}) == size
    assert inspect_checkpoint(checkpoint).vocabulary == size
    assert embedding_rows(checkpoint.config, {"model.embed_tokens.weight": (512, 8)}) == 512  # padded rows
    if size is not None:
        assert mx.max(tokens_of(read_calibration("default"), checkpoint)).item() < size
        for token, known in ((size - 1, True), (size, False)):
            model = ModelConfig({**checkpoint.config, "bos_token_id": token})
            first = first_tokens(model, model.vocabulary, 2, lambda: mx.array([5, 7]))
            assert first.tolist() == ([token, token] if known else [5, 7])


@pytest.mark.parametrize(
    ("given", "bos", "eos"),
    [
        ({"bos_token_id": 1, "eos_token_id": 2}, 1, (2,)),
        ({"bos_token_id": 0, "eos_token_id": [2, 3]}, 0, (2, 3)),
        ({"text_config": {"bos_token_id": 1, "eos_token_id": 2}}, 1, (2,)),
        ({"eos_token_id": [1, 106], "text_config": {"bos_token_id": 2, "eos_token_id": 1}}, 2, (1, 106)),
        ({"bos_token_id": None, "text_config": {"bos_token_id": 4}}, 4, ()),
        ({"bos_token_id": "<s>", "eos_token_id": [True, -1, "x", 7]}, None, (7,)),
        ({}, None, ()),
    ],
)
def test_special_ids(given, bos, eos):
    assert (ModelConfig(given).bos, ModelConfig(given).eos) == (bos, eos)


def test_the_rest_of_a_config():
    config = ModelConfig(
        {
            "model_type": "wrapper",
            "architectures": ["WrapperForConditionalGeneration", 7],
            "torch_dtype": "torch.bfloat16",
            "num_hidden_layers": 40,
            "quantization": {"bits": 4},
            "text_config": {
                "n_embd": 8,
                "n_layer": 2,
                "n_head": 2,
                "tie_word_embeddings": True,
                "sliding_window": 16,
                "quantization_config": {"quant_method": "awq"},
            },
        }
    )
    assert (config.model_type, config.architectures) == ("wrapper", ("WrapperForConditionalGeneration",))
    assert (config.hidden_size, config.layers, config.heads, config.sliding_window) == (8, 2, 2, 16)
    assert (config.dtype, config.tied) == ("bfloat16", True)
    assert (config.mlx_quantization, config.foreign_quantization) == ({"bits": 4}, {"quant_method": "awq"})
    assert config.path == ("text_config",)


@pytest.mark.parametrize("values", [{}, {"hidden_size": "8"}, {"text_config": {"n_embd": None}}])
def test_a_number_that_is_needed_and_not_there_is_one_clear_error(values):
    with pytest.raises(ConfigError, match="gives no hidden size .*hidden_size, n_embd, d_model"):
        ModelConfig(values).needed("hidden_size")
    assert ModelConfig({**values, "d_model": 8}).needed("hidden_size") == 8


@pytest.mark.parametrize("value", [None, "x", 1, True, [], {}, [{}], {"a": 1}, math.nan, -1, 10**40])
def test_no_value_of_any_type_is_more_than_a_none(value):
    """Every property of a config in which everything is ``value``, at the root and in its text part."""
    names = (
        *(
            "model_type",
            "architectures",
            "dtype",
            "torch_dtype",
            "tie_word_embeddings",
            "quantization",
            "sliding_window",
        ),
        *("quantization_config", "max_position_embeddings", "num_attention_heads", *FIELDS),
    )
    everything = dict.fromkeys(names, value)
    for config in (everything, {**everything, "text_config": everything}, {"text_config": value}, {"decoder": value}):
        model = ModelConfig(config)
        assert model.context_length in (None, value) and model.vocabulary in (None, value)
        assert isinstance(model.architectures, tuple) and isinstance(model.eos, tuple)
        assert isinstance(model.mlx_quantization, Mapping) and isinstance(model.foreign_quantization, Mapping)
        assert model.tied in (None, True) and isinstance(model.dtype, str | None)
        assert isinstance(model.text, Mapping) and model.layers in (None, value)
