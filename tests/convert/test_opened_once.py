"""What a verified conversion does once, however many layers the model has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import mlx_lm.utils
import pytest
import transformers

from checkpoints import write_llama
from mlxport import convert, verify
from mlxport.layouts.mlx_lm import normalize, opening

# Models: of the original, of the output, and of that whose attention is probed at far positions, lazily.
MOST = {"traces": 1, "models": 3, "configs": 3, "tokenizers": 4}


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How often the real functions are called."""
    found: Counter[str] = Counter()

    def count(owner: Any, name: str, what: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            found[what] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    count(opening, "trace", "traces")
    count(mlx_lm.utils, "load_model", "models")
    count(normalize, "_normalized", "configs")
    count(transformers.AutoTokenizer, "from_pretrained", "tokenizers")
    yield found


@pytest.mark.parametrize("mode", ["full", "layerwise"])
def test_a_verified_conversion_opens_the_target_once(counts, tmp_path, mode):
    seen = []
    for layers in (2, 7):
        source = write_llama(tmp_path / f"{layers}", layers)
        counts.clear()
        report = convert(source, tmp_path / f"{layers} out", quantize=8, verify=mode)
        assert report.parity is not None and report.parity.passed and report.parity.weights is not None
        assert report.parity.weights.tensors > 9 * layers
        seen.append(dict(counts))
    assert seen[0] == seen[1]
    assert {what: counts[what] for what in MOST if counts[what] > MOST[what]} == {}


def test_a_verification_alone_opens_the_target_once(counts, tmp_path):
    source = write_llama(tmp_path / "source", 5)
    convert(source, tmp_path / "out", verify="none")
    counts.clear()
    assert verify(tmp_path / "out", source).passed
    assert counts["traces"] == 1


@pytest.mark.parametrize(
    ("options", "verify"),
    [
        ({"quantize": 4, "calibrate": "default"}, "none"),
        ({"target_bpw": 3.5}, "none"),
        ({"target_bpw": 3.5, "calibrate": "default"}, "full"),
        ({"quantize": 4, "distill": 1}, "none"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else value,
)
def test_what_runs_the_model_does_not_open_it_again(counts, tmp_path, options, verify):
    source = write_llama(tmp_path / "source", shards=1)
    convert(source, tmp_path / "out", verify=verify, **options)
    assert counts["traces"] == 1
    # Models of what was written are opened as well: to be verified and probed at far positions; to be trained;
    # and, beside a placeholder of the original, to measure what calibrating left of the damage.
    measured = "target_bpw" in options and "calibrate" in options
    outputs = 2 * (verify != "none") + ("distill" in options) + 2 * measured
    assert counts["models"] == 1 + outputs
