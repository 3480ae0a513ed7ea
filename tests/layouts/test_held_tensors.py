"""Tensors in memory read like those of a file."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
import torch

from mlxport.errors import UnsupportedError
from mlxport.layouts.generated.held_tensors import content_hash, held_checkpoint
from mlxport.source import read_rows
from mlxport.transform import Evaluator

TENSORS = {
    "plain": torch.arange(12, dtype=torch.float32).reshape(4, 3),
    "transposed": torch.arange(12, dtype=torch.int64).reshape(3, 4).T,
    "strided": torch.arange(24, dtype=torch.int32).reshape(4, 6)[:, ::2],
    "half": torch.tensor([[1.5], [2.5]], dtype=torch.bfloat16),
    "flags": torch.tensor([True, False]),
    "scalar": torch.tensor(3.5),
    "empty": torch.zeros((0, 3)),
    "complex": torch.tensor([1 + 2j]).conj(),
    "wide complex": torch.tensor([1 + 2j], dtype=torch.complex128),
    "trained": torch.nn.Parameter(torch.ones(2, 2)),
}


@pytest.mark.parametrize("name", TENSORS)
def test_what_is_read_is_the_tensor(name):
    tensor = TENSORS[name].detach()
    ref = held_checkpoint({name: tensor}, {}, "Module").tensors[name]
    array = Evaluator.whole(ref)
    got = np.array(array.astype(mx.float32) if name == "half" else array)
    wanted = tensor.float() if name == "half" else tensor.resolve_conj()
    assert ref.shape == tuple(tensor.shape) and np.array_equal(got, wanted.numpy())


def test_rows_are_those_of_the_tensor():
    ref = held_checkpoint(TENSORS, {}, "Module").tensors["transposed"]
    assert read_rows(ref, 1, 3).view(np.int64).tolist() == [1, 5, 9, 2, 6, 10]


def test_nothing_is_copied_until_it_is_read_and_then_it_is():
    tensor = torch.zeros(4, 4)
    ref = held_checkpoint({"a": tensor}, {}, "Module").tensors["a"]
    tensor += 1
    rows = read_rows(ref, 1, 3)
    assert np.array_equal(rows.view(np.float32), np.ones(8))
    rows[:] = 0
    assert tensor.sum() == 16


def test_the_hash_is_of_names_shapes_and_content():
    def made(**tensors: torch.Tensor) -> str:
        return content_hash(held_checkpoint(tensors, {}, "Module"))

    same = made(a=torch.zeros(2, 2), b=torch.ones(1))
    assert same == made(a=torch.zeros(2, 2), b=torch.ones(1))
    others = [
        made(a=torch.zeros(4), b=torch.ones(1)),
        made(a=torch.zeros(2, 2), c=torch.ones(1)),
        made(a=torch.zeros(2, 2), b=torch.zeros(1)),
        made(a=torch.zeros(2, 2), b=torch.ones(1, dtype=torch.int32)),
    ]
    assert len({same, *others}) == 5


def test_a_dtype_that_no_file_has_is_refused():
    with pytest.raises(UnsupportedError, match="Module: the tensor w has dtype float8_e4m3fnuz"):
        held_checkpoint({"w": torch.zeros(2).to(torch.float8_e4m3fnuz)}, {}, "Module")
