"""Numbers on their way through the writer: what is counted, once, and what a cast makes of it."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from checkpoints import write_raw
from mlxport.output.shards import write_shard
from mlxport.transform import BLOCK_BYTES, trace
from mlxport.types import OutTensor, Shard, TensorRef

DTYPES = {mx.float16: "F16", mx.bfloat16: "BF16", mx.float32: "F32"}


def run(tmp_path: Path, array: np.ndarray, dtype: str, pipeline, advance=lambda n: None):
    """Write what ``pipeline`` makes of a tensor named ``a``; the findings and the file."""
    entry = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [0, array.nbytes]}
    source = tmp_path / "in.safetensors"
    write_raw(source, {"a": entry}, array.tobytes())
    offset = source.stat().st_size - array.nbytes
    program = trace(pipeline, {"a": TensorRef("a", dtype, array.shape, source, offset)})
    tensors = tuple(
        OutTensor(name, DTYPES[output.dtype], output.shape, name) for name, output in program.outputs.items()
    )
    path = tmp_path / "out.safetensors"
    return write_shard(program, Shard(path.name, tensors), path, advance=advance).findings, mx.load(str(path))


def spoilt(shape: tuple[int, ...], dtype: type = np.float32) -> np.ndarray:
    array = np.ones(shape, dtype)
    array[0, 0], array[0, -1], array[-1, 1] = np.nan, np.inf, -np.inf
    return array


PIPELINES = {
    "as it is": lambda w: w,
    "transposed": lambda w: {"a": w["a"].T},
    "of a cast": lambda w: {"a": w["a"].astype(mx.float16).T},
    "in two parts": lambda w: {"b": w["a"][:, ::2], "c": w["a"][:, 1::2]},
    "twice": lambda w: {"b": w["a"], "c": w["a"].T},
}


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("rows", [5, 40_000])
def test_each_bad_value_is_counted_once(tmp_path, name, rows):
    array = spoilt((rows, 512))
    assert rows == 5 or array.nbytes > 4 * BLOCK_BYTES
    findings, _ = run(tmp_path, array, "F32", PIPELINES[name])
    assert findings.nonfinite == {"a": 3}
    assert not findings.overflowed


def test_overflow_is_told_from_what_was_infinite_before(tmp_path):
    array = spoilt((6, 8))
    array[3, :4] = [1e5, -1e5, 65504, 65520]
    findings, out = run(tmp_path, array, "F32", lambda w: {"a": w["a"].T.astype(mx.float16)})
    assert findings.nonfinite == {"a": 3}
    assert findings.overflowed == {"a": 3}
    assert mx.isinf(out["a"]).sum().item() == 5


@pytest.mark.parametrize("pipeline", [lambda w: w, lambda w: {"a": w["a"].astype(mx.bfloat16)}])
def test_float64_beyond_float32_is_an_overflow(tmp_path, pipeline):
    array = np.array([[1e300, -1e39, 3e38], [np.inf, np.nan, 0]])
    findings, out = run(tmp_path, array, "F64", pipeline)
    assert findings.nonfinite == {"a": 2}
    assert findings.overflowed == {"a": 2}
    assert mx.isinf(out["a"]).sum().item() == 3


def test_float64_through_a_pipeline_that_cannot_be_followed(tmp_path):
    def pipeline(weights):
        return {"a": mx.random.permutation(weights["a"])}

    _, out = run(tmp_path, np.arange(6.0).reshape(3, 2), "F64", pipeline)
    assert sorted(out["a"].flatten().tolist()) == [0, 1, 2, 3, 4, 5]


def threads() -> int:
    """Those of this process that the system counts: MLX's are unknown to Python."""
    return len(list(Path("/proc/self/task").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted as Linux shows them")
def test_many_conversions_leave_no_threads(tmp_path):
    array = spoilt((40_000, 512))
    run(tmp_path, array, "F32", PIPELINES["transposed"])
    before = threads()
    for _ in range(4):
        run(tmp_path, array, "F32", PIPELINES["transposed"])
    assert threads() < before + 4  # one a conversion and core at the worst, where all cores did not meet at first


def test_after_a_failure_nothing_is_under_way(tmp_path):
    array = spoilt((40_000, 512))
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, array, "F32", PIPELINES["transposed"], lambda n: 1 // 0)
    assert not list(tmp_path.glob("out*"))
    assert run(tmp_path, array, "F32", PIPELINES["transposed"])[0].nonfinite == {"a": 3}
