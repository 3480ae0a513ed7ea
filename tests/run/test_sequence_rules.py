"""What generation_config.json says of written tokens is applied as transformers' processors of logits apply it."""

from __future__ import annotations

import json

import mlx.core as mx
import numpy as np
import pytest
import torch
from transformers.generation import logits_process as processors

from mlxport.errors import ConfigError
from mlxport.run.beam_search import BeamSettings
from mlxport.run.sequence_rules import SequenceRules, read_rules

END, MOST = 3, 6
TEXTS = [[2], [2, 5], [2, 5, 6, 5, 6], [2, 6, 5, 9, 6, 5], [2, 7, 7, 7]]
BAD = [[5], [7, 7, 8], [5, 6], [END]]
CASES = {
    "penalty": ({"repetition_penalty": 1.3}, lambda: processors.RepetitionPenaltyLogitsProcessor(1.3)),
    "no token twice": ({"no_repeat_ngram_size": 1}, lambda: processors.NoRepeatNGramLogitsProcessor(1)),
    "no pair twice": ({"no_repeat_ngram_size": 2}, lambda: processors.NoRepeatNGramLogitsProcessor(2)),
    "bad words": ({"bad_words_ids": BAD}, lambda: processors.NoBadWordsLogitsProcessor(BAD, END)),
    "least length": ({"min_length": 3}, lambda: processors.MinLengthLogitsProcessor(3, END)),
    "least new tokens": (
        {"min_new_tokens": 4},
        lambda: processors.MinNewTokensLengthLogitsProcessor(1, 4, END),
    ),
    "first": ({"forced_bos_token_id": 9}, lambda: processors.ForcedBOSTokenLogitsProcessor(9)),
    "last": ({"forced_eos_token_id": END}, lambda: processors.ForcedEOSTokenLogitsProcessor(MOST + 1, END)),
    "never": ({"suppress_tokens": [4, 8]}, lambda: processors.SuppressTokensLogitsProcessor([4, 8])),
    "not first": (
        {"begin_suppress_tokens": [4]},
        lambda: processors.SuppressTokensAtBeginLogitsProcessor([4], 1),
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("text", TEXTS, ids=str)
def test_a_rule_is_that_of_transformers(case, text):
    settings, make = CASES[case]
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(1))
    wanted = make()(torch.tensor([text]), logits.clone())
    (apply,) = SequenceRules(settings, (END,), MOST).processors()
    got = apply(mx.array(text), mx.array(logits.numpy()))
    np.testing.assert_allclose(np.array(got), wanted.numpy(), rtol=1e-6)


def test_without_rules_nothing_is_applied_and_what_is_not_is_named():
    rules = SequenceRules({"no_repeat_ngram_size": 0, "repetition_penalty": 1.0, "num_beams": 4}, (END,), MOST)
    assert rules.processors() == [] and rules.not_applied() == []
    assert SequenceRules({"sequence_bias": [[[3], 1.0]]}, (), MOST).not_applied() == ["sequence_bias"]


def test_how_beams_are_searched():
    assert SequenceRules({}, (END,), MOST).beams(None) == BeamSettings(1, 1.0, False, False)
    settings = {"num_beams": 4, "length_penalty": 2, "early_stopping": "never", "renormalize_logits": True}
    assert SequenceRules(settings, (END,), MOST).beams(None) == BeamSettings(4, 2.0, "never", True)
    assert SequenceRules(settings, (END,), MOST).beams(2).num_beams == 2


@pytest.mark.parametrize(
    "settings", [{"num_beams": 0}, {"num_beams": "4"}, {"length_penalty": True}, {"early_stopping": 3}]
)
def test_settings_of_another_kind_are_named(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        SequenceRules(settings, (END,), MOST).beams(None)


def test_how_long_a_text_may_be(tmp_path):
    def longest(asked, **settings):
        (tmp_path / "generation_config.json").write_text(json.dumps(settings))
        return read_rules(tmp_path, [], asked, {}).max_tokens

    assert (longest(None), longest(None, max_length=20), longest(None, max_length=20, max_new_tokens=7)) == (256, 19, 7)
    assert longest(5, max_length=20) == 5


def test_the_first_token(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"decoder_start_token_id": 4}))
    assert read_rules(tmp_path, [], MOST, {}).start() == 4
    (tmp_path / "generation_config.json").write_text(json.dumps({"bos_token_id": 0}))
    assert read_rules(tmp_path, [], MOST, {}).start() == 0
    assert read_rules(tmp_path, [], MOST, {"bos_token_id": 7}).start() == 7
    with pytest.raises(ConfigError, match="decoder_start_token_id is None"):
        SequenceRules({}, (), MOST).start()
