"""Two programs have one hash exactly where they compute the same bytes from the same places."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest
from stored import store_random

from mlxport.transform import program_digest, trace

Arrays = dict[str, mx.array]
SHAPES = {"a": ("F32", (4, 64)), "b": ("F32", (4, 64))}


def scaled(factor: float) -> Callable[[Arrays], Arrays]:
    return lambda t: {"w": t["a"] * factor, "v": t["b"]}


def quantized(bits: int, group_size: int = 32) -> Callable[[Arrays], Arrays]:
    names = ("w.weight", "w.scales", "w.biases")
    return lambda t: dict(zip(names, mx.quantize(t["a"], group_size, bits), strict=True))


PIPELINES: dict[str, Callable[[Arrays], Arrays]] = {
    "a number": scaled(0.5),
    "another number": scaled(0.5000001),
    "another tensor": lambda t: {"w": t["b"] * 0.5, "v": t["b"]},
    "another name": lambda t: {"x": t["a"] * 0.5, "v": t["b"]},
    "another order": lambda t: {"v": t["b"], "w": t["a"] * 0.5},
    "another dtype": lambda t: {"w": t["a"] * 0.5, "v": t["b"].astype(mx.float16)},
    "another call": lambda t: {"w": t["a"] / 2.0, "v": t["b"]},
    "other arguments": lambda t: {"w": t["a"][::-1] * 0.5, "v": t["b"]},
    "inputs the other way": lambda t: {"w": t["a"] - t["b"], "v": t["b"]},
    "inputs this way": lambda t: {"w": t["b"] - t["a"], "v": t["b"]},
    "another part of a split": lambda t: {"w": mx.split(t["a"], 2)[1], "v": t["b"]},
    "a part of a split": lambda t: {"w": mx.split(t["a"], 2)[0], "v": t["b"]},
    "an infinite number": scaled(float("inf")),
    "4 bits": quantized(4),
    "2 bits": quantized(2),
    "another group": quantized(4, 64),
}


def digest(pipeline: Callable[[Arrays], Arrays], folder: Path) -> str:
    return program_digest(trace(pipeline, store_random(folder, **SHAPES)), folder)


def test_it_is_of_what_is_computed(tmp_path: Path) -> None:
    found = {name: digest(pipeline, tmp_path) for name, pipeline in PIPELINES.items()}
    assert len({*found.values()}) == len(found)
    assert found == {name: digest(pipeline, tmp_path) for name, pipeline in PIPELINES.items()}


def test_it_is_of_the_place_in_the_folder_and_not_of_the_folder(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    assert digest(scaled(2), folders[0]) == digest(scaled(2), folders[1])


@pytest.mark.parametrize("change", [{"offset": 4}, {"path": Path("elsewhere")}, {"dtype": "I32"}], ids=str)
def test_it_is_of_where_a_tensor_lies(change: dict, tmp_path: Path) -> None:
    refs = store_random(tmp_path, **SHAPES)
    moved = {**refs, "b": replace(refs["b"], **change)}
    before, after = (program_digest(trace(scaled(2), each), tmp_path) for each in (refs, moved))
    assert before != after


def test_another_quantizer_is_another_program(tmp_path: Path) -> None:
    program = trace(quantized(4), store_random(tmp_path, **SHAPES))
    assert program_digest(program, tmp_path) != program_digest(replace(program, quantizer="search"), tmp_path)


def test_a_long_chain_is_no_recursion(tmp_path: Path) -> None:
    def chain(t: Arrays) -> Arrays:
        array = t["a"]
        for _ in range(3000):
            array = array + 1.0
        return {"w": array}

    assert digest(chain, tmp_path)
