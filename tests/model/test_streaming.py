"""What is read where it is used computes what it computes in memory: linear, embeddings, experts, plain or packed."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.switch_layers import SwitchLinear

from mlxport.model.leaf_calls import expert_products, table_rows
from mlxport.model.streaming import StreamedMatrix, stream
from mlxport.model.tensors import stored_tensors

MODES = {
    "plain": None, "4 bits": (32, 4, "affine"), "3 bits": (32, 3, "affine"), "mxfp4": (32, 4, "mxfp4"),
    "nvfp4": (16, 4, "nvfp4"), "mxfp8": (32, 8, "mxfp8"),
}  # fmt: skip


class Leaves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 64)
        self.biased = nn.Linear(64, 96)
        self.plain = nn.Linear(96, 64, bias=False)
        self.experts = SwitchLinear(64, 32, 5)


def saved(folder: Path, how: tuple[int, int, str] | None, dtype: mx.Dtype = mx.bfloat16) -> Leaves:
    mx.random.seed(5)
    model = Leaves()
    model.set_dtype(dtype)
    if how is not None:
        group_size, bits, mode = how
        nn.quantize(model, group_size=group_size, bits=bits, mode=mode)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    model.set_dtype(mx.float32)
    return model


def outputs(model: Leaves) -> dict[str, mx.array]:
    key = mx.random.key(1)
    x = mx.random.normal((2, 7, 64), key=key)
    indices = mx.random.randint(0, 5, (2, 7, 3), key=key)
    return {
        "table": model.table(mx.array([[3, 39, 3], [0, 1, 38]])),
        "head": model.table.as_linear(x),
        "biased": model.biased(x),
        "plain": model.plain(model.biased(x)),
        "experts": model.experts(x[:, :, None, None], indices),
        "one of the experts": model.experts(x[:, :, None, None], mx.full((2, 7, 1), 4)),
    }


@pytest.mark.parametrize("block", [1, 5000, 48 << 20])
@pytest.mark.parametrize("mode", MODES)
def test_streamed_is_what_it_is_in_memory(mode, block, tmp_path, monkeypatch):
    monkeypatch.setattr("mlxport.model.streaming.BLOCK_BYTES", block)
    model = saved(tmp_path, MODES[mode])
    expected = outputs(model)
    mx.eval(expected)
    assert stream(model, tmp_path) == []
    for name in ("weight", "scales"):
        for _, module in model.named_modules():
            if name in module:  # nothing of it is read from memory
                module[name] = mx.zeros_like(module[name])
    for name, found in outputs(model).items():
        assert found.dtype == mx.float32 and found.shape == expected[name].shape, name
        # mx and nv modes of MLX unpack embeddings to bfloat16, exactly
        assert mx.allclose(found, expected[name].astype(mx.float32), rtol=1e-4, atol=1e-5), name


def test_rows_are_those_that_the_whole_unpacks_to(tmp_path):
    model = saved(tmp_path, MODES["4 bits"], mx.float16)
    tensors = stored_tensors(tmp_path)
    parts = {part: tensors[f"biased.{part}"] for part in ("weight", "scales", "biases")}
    how = {"group_size": 32, "bits": 4, "mode": "affine"}
    layer = model.biased
    whole = mx.dequantize(layer.weight, layer.scales, layer.biases, group_size=32, bits=4)
    assert mx.array_equal(StreamedMatrix(parts, how).rows(3, 9), whole[3:9])


class Convolved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(8, 8, 3)
        self.late = nn.Conv1d(8, 8, 3)

    def __call__(self, x: mx.array) -> mx.array:
        return self.late(self.conv(x))


def test_other_modules_get_their_weights_anew_and_those_that_cannot_are_named(tmp_path, monkeypatch):
    mx.random.seed(2)
    model, x = Convolved(), mx.random.normal((1, 9, 8))
    arrays = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(tmp_path / "model.safetensors"), {k: v for k, v in arrays.items() if "late" not in k})
    expected = model(x)
    mx.eval(expected)
    monkeypatch.setattr("mlxport.model.streaming.SMALL_BYTES", 64)
    assert stream(model, tmp_path) == ["late"]
    assert mx.allclose(model(x), expected)
    given = model.conv["weight"]
    assert mx.allclose(model(x), expected) and model.conv["weight"] is not given


@pytest.mark.parametrize("shape", [(2, 3), (6,), (2, 1, 3)])
def test_expert_products_are_those_of_gather_mm(shape):
    weights = mx.random.normal((4, 8, 16), key=mx.random.key(0))
    x = mx.random.normal((*shape[:-1], 1, 1, 16), key=mx.random.key(1))
    indices = mx.random.randint(0, 4, shape, key=mx.random.key(2))
    seen = []

    def product(expert, mine, entries):
        seen.append((expert, len(entries)))
        return mine @ weights[expert].T

    found = expert_products(x, indices, product)
    expected = mx.gather_mm(x, weights.swapaxes(-1, -2), rhs_indices=indices)
    assert found.shape == expected.shape and mx.allclose(found, expected, atol=1e-5)
    assert sum(count for _, count in seen) == indices.size and len({expert for expert, _ in seen}) == len(seen)


def test_each_row_of_a_table_is_read_once():
    table, read = mx.arange(20).reshape(10, 2), []

    def row(number: int) -> mx.array:
        read.append(number)
        return table[number : number + 1]

    ids = mx.array([[7, 2], [2, 9], [7, 7]])
    rows, places = table_rows(ids, row)
    assert read == [2, 7, 9] and mx.array_equal(rows[places], table[ids])
