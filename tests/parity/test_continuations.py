"""What transformers generates is the reference, unless it is not what the model itself gives for the same tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from language_models import greedy, make_language_model
from mlxport.parity.continuations import followed

PROMPT = np.array([5, 40, 31, 7, 300, 22])


@pytest.fixture(scope="module")
def opt():
    return make_language_model("opt")


def whole(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def test_what_transformers_generates_with_its_cache(opt):
    text, why = followed(opt, PROMPT, 8)
    assert why == "" and text.prompt == len(PROMPT)
    wanted = greedy(opt, PROMPT.tolist(), 8)
    assert [*text.ids[len(PROMPT) :], int(text.logits[-1].argmax())] == wanted
    np.testing.assert_allclose(text.logits, whole(opt, text.ids), atol=1e-4)


def test_penalties_that_a_checkpoint_asks_for_are_none_of_the_model(opt):
    opt.generation_config = transformers.GenerationConfig(repetition_penalty=9.0, forced_eos_token_id=3, max_length=10)
    text, why = followed(opt, PROMPT, 8)
    assert why == "" and [int(row.argmax()) for row in text.logits[len(PROMPT) - 1 : -1]] == text.ids[len(PROMPT) :]


def test_inputs_that_generate_makes_otherwise_than_the_model(opt, monkeypatch):
    right = opt.prepare_inputs_for_generation

    def shifted(input_ids, **kwargs):  # generate looks for the name
        given = right(input_ids, **kwargs)
        return {**given, "input_ids": (given["input_ids"] + 1) % 320}

    monkeypatch.setattr(opt, "prepare_inputs_for_generation", shifted)
    text, why = followed(opt, PROMPT, 6)
    assert "generate is off from its own forward pass" in why and why.endswith("whole texts instead")
    assert len(text.ids) == len(PROMPT) + 5
    np.testing.assert_allclose(text.logits, whole(opt, text.ids), atol=1e-4)
    assert text.ids[-1] == whole(opt, text.ids[:-1])[-1].argmax()


def test_a_model_that_does_not_generate(opt, monkeypatch):
    def fails(*args, **kwargs):
        raise ValueError("no cache")

    monkeypatch.setattr(type(opt), "generate", fails)
    text, why = followed(opt, PROMPT, 3)
    assert why == "transformers does not generate with its cache (ValueError): whole texts instead"
    np.testing.assert_allclose(text.logits, whole(opt, text.ids), atol=1e-4)
