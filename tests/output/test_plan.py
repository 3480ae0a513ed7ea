"""Shards: every tensor once, in order, within the limit, named as mlx-lm names them."""

from __future__ import annotations

import re
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxport.errors import UsageError
from mlxport.output.plan import BASE_BYTES, DEFAULT_SHARD_SIZE, make_plan, make_shards, parse_size
from mlxport.types import OutTensor, QuantSpec


def tensor(name: str, size: int) -> OutTensor:
    return OutTensor(name, "U8", (size,), name)


def layout(shards: Any) -> list[list[str]]:
    return [[tensor.name for tensor in shard.tensors] for shard in shards]


SIZES = {
    "5GB": 5 * 10**9,
    DEFAULT_SHARD_SIZE: 5 * 10**9,
    "5gb": 5 * 10**9,
    " 2.5 GB ": 25 * 10**8,
    "500MB": 5 * 10**8,
    "300KB": 3 * 10**5,
    "1K": 1000,
    "1TB": 10**12,
    "2GiB": 2**31,
    "0.5MiB": 2**19,
    "1KiB": 1024,
    "1TIB": 2**40,
    "7": 7,
    "7B": 7,
    12345: 12345,
    "9007199254740993": 9007199254740993,
    "1" + "0" * 400: 10**400,
}


@pytest.mark.parametrize("text", SIZES)
def test_sizes(text: str | int):
    assert parse_size(text) == SIZES[text]


@pytest.mark.parametrize(
    "text", ["", "GB", "5 5GB", "-1GB", "5PB", "5Gbit", "1e9", "inf", "nan", "5,5GB", "0x10", True, None, "5GB;"]
)
def test_what_is_not_a_size(text: Any):
    with pytest.raises(UsageError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize("text", ["0", 0, -5, "0.0001KB", "0GB"])
def test_a_size_that_holds_nothing(text: Any):
    with pytest.raises(UsageError, match="cannot hold anything"):
        parse_size(text)


def test_one_file_has_no_number():
    shards = make_shards([tensor("a", 5), tensor("b", 5)], 10)
    assert [shard.filename for shard in shards] == ["model.safetensors"]
    assert shards[0].nbytes == 10


def test_files_are_filled_in_order_and_numbered_as_by_mlx_lm():
    shards = make_shards([tensor(name, size) for name, size in zip("abcdef", (4, 4, 4, 9, 1, 1), strict=True)], 10)
    assert layout(shards) == [["a", "b"], ["c"], ["d", "e"], ["f"]]
    assert [shard.filename for shard in shards] == [f"model-{i:05d}-of-00004.safetensors" for i in range(1, 5)]


def test_the_cuts_are_those_of_mlx_lm():
    import mlx_lm.utils as mlx_lm

    sizes = [700 << 20, 300 << 20, 30 << 20, 1, 1 << 30, (1 << 30) - 1, 2 << 30, 5, 512 << 20, 512 << 20]
    shapes = [(size,) if size < 2 << 30 else (2, size // 2) for size in sizes]
    arrays = {f"t{i}": mx.zeros(shape, mx.uint8) for i, shape in enumerate(shapes)}  # lazy: no memory
    expected = [list(shard) for shard in mlx_lm.make_shards(arrays, max_file_size_gb=1)]
    assert layout(make_shards([tensor(f"t{i}", size) for i, size in enumerate(sizes)], 1 << 30)) == expected


@pytest.mark.parametrize("by", ["size", "layer"])
def test_what_is_larger_than_the_limit_gets_a_file_of_its_own(by: str):
    tensors = [tensor("embed", 1), tensor("layers.0.w", 1000), tensor("layers.1.w", 1), tensor("norm", 1)]
    assert layout(make_shards(tensors, 10, by)) == [["embed"], ["layers.0.w"], ["layers.1.w", "norm"]]


def test_layers_stay_together():
    names = ["model.layers.0.a", "model.layers.1.a", "model.embed", "model.layers.0.b", "model.layers.10.a", "head.w"]
    shards = make_shards([tensor(name, 4) for name in names], 8, "layer")
    assert layout(shards) == [
        ["model.layers.0.a", "model.layers.0.b"],
        ["model.layers.1.a", "model.embed"],
        ["model.layers.10.a", "head.w"],
    ]


def test_experts_belong_to_their_layer_and_stacks_of_layers_are_apart():
    names = ["enc.h.1.mlp.experts.0.w", "enc.h.1.mlp.experts.7.w", "dec.h.1.w", "1.w", "w.1"]
    assert layout(make_shards([tensor(name, 5) for name in names], 5, "layer")) == [
        names[:2],
        *([n] for n in names[2:]),
    ]


def test_another_way_to_cut_is_refused():
    with pytest.raises(UsageError, match="cannot shard by 'colour'"):
        make_shards([], 10, "colour")


NAMES = st.from_regex(r"\A(m\.)?(layers\.[0-3]\.)?[a-e]{1,3}\Z")


@given(
    sizes=st.dictionaries(NAMES, st.integers(0, 40), min_size=1, max_size=30),
    limit=st.integers(1, 60),
    by=st.sampled_from(["size", "layer"]),
)
def test_every_tensor_is_in_one_file_and_no_file_is_over_the_limit(sizes: dict[str, int], limit: int, by: str):
    shards = make_shards([tensor(name, size) for name, size in sizes.items()], limit, by)
    flat = [name for names in layout(shards) for name in names]
    assert sorted(flat) == sorted(sizes)
    if by == "size":
        assert flat == list(sizes)

    def layer(name: str) -> str:
        found = re.match(r"(m\.)?layers\.\d\.", name)
        return found[0] if found and by == "layer" else name

    homes: dict[str, set[str]] = {}
    for shard in shards:
        for each in shard.tensors:
            homes.setdefault(layer(each.name), set()).add(shard.filename)
        groups = {layer(each.name) for each in shard.tensors}
        assert shard.nbytes <= limit or len({g for g in groups if any(sizes[n] for n in sizes if layer(n) == g)}) == 1
    assert all(len(files) == 1 for files in homes.values())
    for name, group in ((n, layer(n)) for n in sizes):
        assert [n for n in flat if layer(n) == group] == [n for n in sizes if layer(n) == group], name


def test_a_plan_adds_up():
    spec = QuantSpec("affine", 4, 64)
    tensors = [
        OutTensor("a.weight", "U32", (4, 16), "a.weight", "weight", spec),
        OutTensor("a.scales", "BF16", (4, 2), "a.weight", "scales", spec),
        OutTensor("b", "F32", (3,), "b"),
    ]
    plan = make_plan(tensors, max_bytes=270, by="size", dtype="bfloat16", parameters=515, quantized={"a": spec},
                     kept={"b": "why"}, dropped=("c",), working_bytes=1000)  # fmt: skip
    assert [shard.nbytes for shard in plan.shards] == [256, 28]
    assert (plan.nbytes, plan.parameters, plan.dropped, plan.kept) == (284, 515, ("c",), {"b": "why"})
    assert plan.bits_per_weight == pytest.approx(284 * 8 / 515)
    assert plan.peak_bytes >= BASE_BYTES + 1000
