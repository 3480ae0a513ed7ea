"""Weights in archives of NumPy and of MLX: the numbers of a safetensors file, or one clear error."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from checkpoints import weights, write_llama, write_side_files
from refusals import Case, check_error

ARRAYS = weights()


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> bytes:
    """What the same weights become from safetensors."""
    from mlxport import convert

    folder = tmp_path_factory.mktemp("plain")
    write_llama(folder / "hf", shards=1, dtype="F32")
    convert(folder / "hf", folder / "out", verify="none", quiet=True)
    return (folder / "out/model.safetensors").read_bytes()


def in_columns(folder: Path) -> None:
    np.savez(folder / "weights.npz", **{name: np.asfortranarray(array) for name, array in ARRAYS.items()})


def in_files(folder: Path) -> None:
    names = list(ARRAYS)
    for number in range(2):
        np.savez(folder / f"weights.{number:02d}.npz", **{name: ARRAYS[name] for name in names[number::2]})


def of_mlx(folder: Path) -> None:
    mx.savez(str(folder / "model.npz"), **{name: mx.array(array) for name, array in ARRAYS.items()})


@pytest.mark.parametrize("write", [in_columns, in_files, of_mlx])
def test_the_weights_are_those_of_safetensors(mlxport, plain, tmp_path, write):
    write_side_files(tmp_path / "npz")
    write(tmp_path / "npz")
    result = mlxport("convert", tmp_path / "npz", tmp_path / "out", "--quiet")  # verified with transformers, too
    assert result.code == 0, result
    assert (tmp_path / "out/model.safetensors").read_bytes() == plain


def test_bfloat16_of_mlx(mlxport, tmp_path):
    write_side_files(tmp_path / "npz")
    held = {name: mx.array(array).astype(mx.bfloat16) for name, array in ARRAYS.items()}
    mx.savez(str(tmp_path / "npz/weights.npz"), **held)
    assert mlxport("convert", tmp_path / "npz", tmp_path / "out", "--verify", "none", "--quiet").code == 0
    made = mx.load(str(tmp_path / "out/model.safetensors"))
    assert all(
        mx.array_equal(made[name], array).item() and made[name].dtype == mx.bfloat16 for name, array in held.items()
    )


def compressed(folder: Path) -> None:
    np.savez_compressed(folder / "weights.npz", **ARRAYS)


def of_objects(folder: Path) -> None:
    np.savez(folder / "weights.npz", names=np.array([{"a": 1}], dtype=object))


def turned(folder: Path) -> None:
    np.savez(folder / "weights.npz", **{name: array.astype(">f4") for name, array in ARRAYS.items()})


def cut(folder: Path) -> None:
    np.savez(folder / "weights.npz", **ARRAYS)
    content = (folder / "weights.npz").read_bytes()
    (folder / "weights.npz").write_bytes(content[: len(content) // 2])


def without_one(folder: Path) -> None:
    in_files(folder)
    (folder / "weights.00.npz").unlink()


@pytest.mark.parametrize(
    ("write", "named"),
    [
        (compressed, ("is compressed", "np.savez in the place of")),
        (of_objects, ("'names' holds Python objects, which were not loaded",)),
        (turned, ("is of type >f4",)),
        (cut, ("weights.npz is truncated",)),
        (without_one, ("weights.00.npz is missing",)),
    ],
)
def test_archives_that_are_refused(mlxport, tmp_path, write, named):
    write_side_files(tmp_path / "npz")
    write(tmp_path / "npz")
    check_error(mlxport("convert", tmp_path / "npz", tmp_path / "out"), Case(write.__name__, None, named))
    assert not (tmp_path / "out").exists()
