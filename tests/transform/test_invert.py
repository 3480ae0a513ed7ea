"""From outputs back to the checkpoint."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest
from stored import real, store_random

from mlxport.transform import NotInvertible, invert, trace

REFS = {"a": ("F32", (6, 4)), "b": ("F32", (6, 4)), "h": ("BF16", (6, 4)), "v": ("F32", (4,))}

# What mlx-lm's sanitize functions do: each is a bijection of the tensors that it names.
MAPS = {
    "rename": lambda t: {"model.a": t["a"]},
    "stack": lambda t: {"ab": mx.stack([t["a"], t["b"]])},
    "stack and transpose": lambda t: {"ab": mx.stack([t["a"], t["b"]]).swapaxes(-1, -2)},
    "concatenate": lambda t: {"ab": mx.concatenate([t["a"], t["b"]], axis=1)},
    "split": lambda t: dict(zip("xyz", mx.split(t["a"], [1, 3], axis=0), strict=True)),
    "split columns": lambda t: dict(zip("gu", mx.split(t["a"], 2, axis=1), strict=True)),
    "interleaved": lambda t: {"even": t["a"][:, ::2], "odd": t["a"][:, 1::2]},
    "transpose": lambda t: {"a": t["a"].T},
    "plus one": lambda t: {"v": 1 + t["v"]},
    "minus": lambda t: {"v": 2 - t["v"]},
    "scaled": lambda t: {"v": t["v"] * 8 + 1, "a": t["a"] / 4, "b": -t["b"]},
    "wider": lambda t: {"h": t["h"].astype(mx.float32)},
    "narrower": lambda t: {"h": (t["h"].astype(mx.float32) + 1).astype(mx.float16) - 1},
    "duplicates": lambda t: {"embed": t["a"], "head": t["a"]},
    "duplicates, one turned": lambda t: {"embed": t["a"], "head": t["a"].T},
    "reshaped": lambda t: {"a": t["a"].reshape(2, 3, 4).transpose(1, 0, 2)},
    "one into two groups": lambda t: {"x": t["a"][:3], "y": mx.concatenate([t["a"][3:], t["b"]])},
}


@pytest.mark.parametrize("name", MAPS)
def test_round_trip(name: str, tmp_path: Path):
    refs = store_random(tmp_path, **REFS)
    arrays = real(refs)
    program = trace(MAPS[name], refs)
    back = invert(program, MAPS[name](arrays))
    assert set(back) == set(refs) - set(program.unused())
    for key, array in back.items():
        want = arrays[key].astype(mx.float32)
        assert array.shape == want.shape
        tolerance = 2e-2 if key == "h" else 1e-6
        assert mx.allclose(array.astype(mx.float32), want, rtol=0, atol=tolerance), key


def test_a_rename_hands_back_the_very_array(tmp_path: Path):
    program = trace(lambda t: {"x": t["h"], "y": t["a"] + 1}, store_random(tmp_path, **REFS))
    marker = mx.broadcast_to(mx.array(0.0), (6, 4))
    assert invert(program, {"x": marker}) == {"h": marker}
    assert invert(program, {"x": marker})["h"] is marker


def test_nothing_is_read_or_computed_before_it_is_asked_for(tmp_path: Path):
    refs = store_random(tmp_path, **{name: (dtype, (1 << 12, 1 << 12)) for name, (dtype, _) in [("a", ("F16", ()))]})
    program = trace(lambda t: {"t": t["a"].T + 1}, refs)
    refs["a"].path.unlink()
    mx.reset_peak_memory()
    back = invert(program, {"t": mx.ones((1 << 12, 1 << 12))})
    assert mx.get_peak_memory() - mx.get_active_memory() < 1 << 20
    assert mx.array_equal(back["a"][:2, :3], mx.zeros((2, 3)))


def test_a_subset_of_the_outputs(tmp_path: Path):
    refs = store_random(tmp_path, **REFS)
    program = trace(lambda t: {"x": t["a"] + 1, "y": t["b"].T}, refs)
    assert list(invert(program, {"y": mx.ones((4, 6))})) == ["b"]


def test_dropped_elements_are_not_a_number(tmp_path: Path):
    refs = store_random(tmp_path, **REFS)
    back = invert(trace(lambda t: {"x": t["a"][:4] * 2}, refs), {"x": real(refs)["a"][:4] * 2})["a"]
    assert mx.array_equal(back[:4], real(refs)["a"][:4])
    assert mx.isnan(back[4:]).all()


REFUSED = {
    "product of two": (lambda t: {"x": t["a"] * t["b"]}, "x multiplies checkpoint tensors"),
    "sum of two": (lambda t: {"x": t["a"] + t["b"]}, "x adds checkpoint tensors"),
    "quotient": (lambda t: {"x": t["a"] / t["b"]}, "x (multiplies|divides)"),
    "reciprocal": (lambda t: {"x": 1 / t["a"]}, "x divides by a checkpoint tensor"),
    "exponential": (lambda t: {"x": mx.exp(t["a"])}, "x goes through Exp"),
    "padding": (lambda t: {"x": mx.pad(t["a"], 1)}, "x goes through Pad"),
    "reduction": (lambda t: {"x": t["a"].sum(1)}, "x goes through Reduce"),
    "sorted": (lambda t: {"x": mx.sort(t["a"])}, "x is computed by operations that the trace could not follow"),
    "integers": (lambda t: {"x": mx.stack([t["i"], t["i"]])}, "x moves elements of i"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_maps_are_refused(name: str, tmp_path: Path):
    pipeline, message = REFUSED[name]
    refs = store_random(tmp_path, **REFS, i=("U32", (2, 2)))
    with pytest.raises(NotInvertible, match=message):
        invert(trace(pipeline, refs), pipeline(real(refs)))
