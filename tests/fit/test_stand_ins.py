"""Stand-ins have the shapes and dtypes of the real functions, and are gone afterwards."""

from __future__ import annotations

import threading

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlxport.fit.recorded_graph import record
from mlxport.fit.stand_ins import recordable

X = mx.zeros((2, 8, 64), mx.bfloat16)
HEADS = [mx.zeros((1, heads, 16, 64), mx.float16) for heads in (4, 2, 2)]
MASK = mx.ones((16, 16), mx.bool_)
BITS = (2, 3, 4, 5, 6, 8)
FUNCTIONS = {
    "rms_norm": lambda: mx.fast.rms_norm(X, mx.ones((64,), mx.bfloat16), 1e-5),
    "rms_norm, wider weight": lambda: mx.fast.rms_norm(X, mx.ones((64,)), 1e-5),
    "rms_norm without weight": lambda: mx.fast.rms_norm(X, None, 1e-5),
    "layer_norm": lambda: mx.fast.layer_norm(X, mx.ones((64,)), mx.ones((64,)), 1e-5),
    "rope": lambda: mx.fast.rope(X, 64, traditional=False, base=1e4, scale=1.0, offset=3),
    "attention": lambda: mx.fast.scaled_dot_product_attention(*HEADS, scale=1.0, mask="causal"),
    "attention, masked": lambda: mx.fast.scaled_dot_product_attention(*HEADS, scale=1.0, mask=MASK),
    "contiguous": lambda: mx.contiguous(X.transpose(1, 0, 2)),
    "gelu_approx": lambda: nn.gelu_approx(X),
    "SiLU": lambda: nn.SiLU()(X),
    **{f"quantize {bits}": lambda bits=bits: mx.quantize(X[0], group_size=32, bits=bits) for bits in BITS},
    **{mode: lambda mode=mode: mx.quantize(X[0], mode=mode) for mode in ("mxfp4", "mxfp8", "nvfp4")},
    "dequantize": lambda: mx.dequantize(*mx.quantize(X[0], group_size=32, bits=4), group_size=32, bits=4),
}  # fmt: skip


def described(values) -> list[tuple[tuple[int, ...], mx.Dtype]]:
    return [(value.shape, value.dtype) for value in (values if isinstance(values, (tuple, list)) else [values])]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_shapes_and_dtypes(name):
    real = FUNCTIONS[name]()
    with recordable(fused=True):
        assert described(FUNCTIONS[name]()) == described(real)


def test_attention_that_metal_does_not_fuse_is_composed():
    def attend(size):
        heads = [mx.zeros((1, 4, 16, size))] * 3
        with recordable(fused=True):
            graph = record(lambda q, k, v: [mx.fast.scaled_dot_product_attention(q, k, v, scale=1.0)], heads)
        return {node.op for node in graph.nodes}

    assert "Softmax" not in attend(64) and "Softmax" not in attend(128)
    assert "Softmax" in attend(256) and "Softmax" in attend(40)


def test_the_originals_come_back_and_other_threads_keep_them():
    originals = (mx.quantize, mx.fast.rope, nn.gelu)
    seen = []
    with recordable(fused=True):
        assert (mx.quantize, mx.fast.rope, nn.gelu) != originals
        thread = threading.Thread(target=lambda: seen.append(nn.gelu(mx.array([-1.0])).item()))
        thread.start()
        thread.join()
    assert (mx.quantize, mx.fast.rope, nn.gelu) == originals
    assert seen[0] == pytest.approx(-0.1587, abs=1e-3)


def test_groups_that_do_not_fit_are_an_error():
    with recordable(fused=False), pytest.raises(ValueError, match="not a multiple of the group size 64"):
        mx.quantize(mx.zeros((4, 80)), group_size=64, bits=4)
