"""Models that hear and write: one reading of features, and then steps on mlx-lm's caches."""

from __future__ import annotations

import json

import mlx.core as mx
import pytest
import torch
from mlx_lm.generate import generate_step

import mlxport
from mlxport.errors import UnsupportedError, UsageError
from mlxport.graph.write.port_weights import from_torch
from mlxport.run.sequence_rules import SequenceRules
from speech_models import save_whisper, written_of

TOKENS = 16
RULES = {"no_repeat_ngram_size": 1, "suppress_tokens": [3]}


@pytest.fixture(scope="module")
def ported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whisper")
    return save_whisper(folder / "hf"), folder, mlxport.convert(folder / "hf", folder / "mlx", layout="generated")


def test_whisper_writes_what_transformers_writes_of_features(ported):
    original, folder, report = ported
    assert report.parity.passed
    assert "generation: 32 tokens equal; chunks, batch, saved cache: ok" in report.parity.summary()
    assert json.loads((folder / "mlx/mlxport.json").read_text())["options"]["layout"] == "generated-speech"
    model = mlxport.load(folder / "mlx")
    for seed in range(2):
        features = torch.randn(1, 12, 40, generator=torch.Generator().manual_seed(seed))
        wanted = written_of(original, features, TOKENS, **RULES)
        cache = model.make_cache()
        model.encode(from_torch(features), cache)
        processors = SequenceRules(RULES, (), TOKENS).processors()
        steps = generate_step(mx.array([2]), model, max_tokens=TOKENS, prompt_cache=cache, logits_processors=processors)
        assert [int(token) for token, _ in steps] == wanted and len(set(wanted)) == TOKENS


def test_what_reads_no_text_says_so(ported):
    _, folder, _ = ported
    with pytest.raises(UnsupportedError, match="a port that hears"):
        mlxport.generate(folder / "mlx", "hello")
    with pytest.raises(UsageError, match="for models that read texts"):
        mlxport.convert(folder / "hf", folder / "other", target_bpw=8)
