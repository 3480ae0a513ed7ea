"""Normalisation and attention through the port, compared with torch."""

import pytest
import torch
import torch.nn.functional as F
from conformance import Case, run_calls, run_case
from torch.utils import _pytree as pytree

from mlxport.graph.capture.export import export
from mlxport.graph.lower.one_function import flat_source

torch.manual_seed(0)
X = torch.randn(3, 4, 5, 6) * 2 + 1
W4, B4, MEAN, VAR = torch.randn(4), torch.randn(4), torch.randn(4), torch.rand(4) + 0.5


def passes(function, args, kwargs=None):
    outcome = run_case(function, args, kwargs or {})
    assert outcome.status == "pass", outcome


def source_of(function, args, kwargs):
    leaves, structure = pytree.tree_flatten((args, kwargs))
    tensors = tuple(leaf for leaf in leaves if isinstance(leaf, torch.Tensor))
    return flat_source(export(Case(function, structure, leaves), tensors).graph)


NORMS = [
    (F.layer_norm, (X, (6,)), {}),
    (F.layer_norm, (X, (5, 6), torch.randn(5, 6), torch.randn(5, 6)), {"eps": 0.1}),
    (F.layer_norm, (X, (6,), None, torch.randn(6)), {}),
    (F.rms_norm, (X, (6,), torch.randn(6)), {}),
    (F.rms_norm, (X, (5, 6)), {"eps": 0.5}),
    (F.group_norm, (X, 2, W4, B4), {"eps": 0.01}),
    (F.group_norm, (X[:, :, 0], 4), {}),
    (F.group_norm, (X[:, :, 0, 0], 2, W4, B4), {}),
    (F.instance_norm, (X,), {"weight": W4, "bias": B4}),
    (F.batch_norm, (X, MEAN, VAR, W4, B4), {"eps": 0.01}),
    (F.batch_norm, (X[:, :, 0, 0], MEAN, VAR), {}),
    (F.batch_norm, (X, None, None), {"training": True}),
    (F.local_response_norm, (X, 3), {"alpha": 0.1, "k": 2.0}),
    (F.normalize, (X,), {"p": 1.0, "dim": -1}),
]


def test_norm():
    outcome = run_calls(NORMS)
    assert outcome.status == "pass", outcome.reason


def test_statistics_are_taken_in_float32():
    x = (torch.randn(2, 4, 32, 32) + 30).to(torch.bfloat16)
    passes(F.layer_norm, (x, (32,)))
    passes(torch.native_layer_norm, (x, (32,), None, None, 1e-5))


def qkv(heads=2, queries=3, keys=5):
    return torch.randn(2, heads, queries, 8), torch.randn(2, heads, keys, 8), torch.randn(2, heads, keys, 8)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": 0.3},
        {"is_causal": True},
        {"attn_mask": torch.randn(3, 5)},
        {"attn_mask": torch.randn(2, 1, 3, 5)},
        {"attn_mask": torch.rand(2, 2, 3, 5) > 0.3},
    ],
)
def test_attention(options):
    passes(F.scaled_dot_product_attention, qkv(), options)


@pytest.mark.parametrize("shape", [(), (4,), (2, 3, 4)])
def test_attention_of_other_ranks(shape):
    q, k = torch.randn(*shape, 3, 8), torch.randn(*shape, 5, 8)
    passes(F.scaled_dot_product_attention, (q, k, k))
    passes(F.scaled_dot_product_attention, (q, k, k), {"attn_mask": torch.rand(3, 5) > 0.3})


def test_attention_with_fewer_key_heads():
    q, _, _ = qkv(heads=4)
    _, k, v = qkv(heads=2)
    passes(F.scaled_dot_product_attention, (q, k, v), {"enable_gqa": True})


@pytest.mark.parametrize("added", [False, True])
def test_a_query_that_sees_no_key_gives_zeros(added):
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1] = False
    if added:
        mask = torch.zeros(3, 5).masked_fill(~mask, -torch.inf)
    passes(F.scaled_dot_product_attention, qkv(), {"attn_mask": mask})


def test_attention_with_dropout_is_refused():
    outcome = run_case(F.scaled_dot_product_attention, qkv(), {"dropout_p": 0.5})
    assert outcome.status == "unsupported" and "random" in outcome.reason


def test_equal_lengths_use_the_causal_mask_of_mlx():
    source = source_of(F.scaled_dot_product_attention, qkv(queries=5), {"is_causal": True})
    assert "mask='causal'" in source.replace('"', "'")


def test_softmax_of_a_hidden_row_gives_zeros():
    x = torch.randn(3, 4)
    x[1] = -torch.inf
    passes(torch.ops.aten._safe_softmax.default, (x, -1))


def causal_by_position(q, k, v):
    mask = torch.arange(k.shape[2])[None] <= torch.arange(q.shape[2])[:, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def first_key_hidden(q, k, v):
    mask = torch.arange(1, k.shape[2] + 1)[None] <= torch.arange(q.shape[2])[:, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


@pytest.mark.parametrize(("function", "plain"), [(causal_by_position, True), (first_key_hidden, False)])
def test_a_mask_whose_rows_all_see_a_key_goes_to_mlx_as_it_is(function, plain):
    passes(function, qkv())
    assert ("masked_attention" in source_of(function, qkv(), {})) is not plain
