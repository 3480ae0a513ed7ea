"""Whole choices are compared on tokens that none was made with; the gain counts where it is beyond its error."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from sensitive_models import save

from mlxport.allocate import make_target
from mlxport.allocate.candidates import find_candidates
from mlxport.allocate.choose import find_allocation
from mlxport.allocate.judging import gains
from mlxport.allocate.written_tokens import make_tokens
from mlxport.layouts.mlx_lm.opening import open_model
from mlxport.progress import make_progress
from mlxport.source import open_checkpoint


def test_gains_and_their_errors_are_by_kind_of_text():
    """Of two kinds: better by 0.1 without a doubt, and worse by an amount that depends on the place."""
    one = np.ones((5, 8))
    other = one.copy()
    other[:2] -= 0.1
    other[2:] += np.linspace(0, 0.4, 24).reshape(3, 8)
    (first, error), (second, doubt) = gains(one, other, (2, 3))
    assert (first, error) == pytest.approx((0.1, 0.0))
    spans = (one - other)[2:].reshape(3, 4, 2).mean(-1).ravel()
    assert (second, doubt) == pytest.approx((-0.2, spans.std(ddof=1) / len(spans) ** 0.5))


@pytest.mark.parametrize(
    ("tokenizer", "kinds", "origin"),
    [(True, 2, "written by itself and of a built-in text"), (False, 1, "written by itself")],
)
def test_half_is_written_and_half_is_of_a_text(tokenizer: bool, kinds: int, origin: str, tmp_path: Path):
    folder = save("llama", tmp_path / "source")
    if not tokenizer:
        for path in folder.glob("tokenizer*"):
            path.unlink()
    checkpoint = open_checkpoint(folder)
    program, model = open_model(checkpoint).plain.program, open_model(checkpoint).skeleton()
    measured, judging = make_tokens(checkpoint, model, program, 320, 512)
    assert measured.origin == judging.origin == origin and len(measured.kinds) == len(judging.kinds) == kinds
    assert measured.ids.size == 512 and judging.ids.size == 4 * 512
    assert sum(measured.kinds) == measured.ids.shape[0] and len(set(judging.kinds)) == 1
    ids = {tuple(row) for row in measured.ids.tolist()}
    assert ids.isdisjoint(map(tuple, judging.ids.tolist())), "bits must not be judged on what they were chosen with"
    assert mx.all((measured.ids >= 0) & (measured.ids < 320)).item()


def test_one_setting_is_kept_where_bits_by_module_gain_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """At the size of 4 bits for all: whatever is measured is the same for both, so that there is no gain."""
    checkpoint = open_checkpoint(save("llama", tmp_path / "source"))
    model = open_model(checkpoint)
    candidates = find_candidates(model.skeleton(), model.plain.program)

    def found() -> dict[str, object]:
        with make_progress(0, "", quiet=True) as progress:
            chosen = find_allocation(
                model, make_target(target_bpw=4.55), max_shard_size="5GB", shard_by="size", progress=progress
            )
        return {choice.path: choice.spec for choice in chosen.report.choices}

    assert len(set(found().values())) > 1
    monkeypatch.setattr("mlxport.allocate.choose.gains", lambda *_: [(0.001, 0.002)])
    kept = found()
    assert set(kept) == set(candidates) and len(set(kept.values())) == 1
    assert {(spec.bits, spec.group_size) for spec in kept.values()} == {(4, 64)}
