from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from mlxport.errors import SourceError, WeightsError
from mlxport.source import hash_file, read_rows
from mlxport.source.row_reader import _Files
from mlxport.source.safetensors_file import read_safetensors
from mlxport.types import TensorRef


@pytest.fixture
def ref(tmp_path: Path) -> TensorRef:
    save_file({"a": np.arange(40, dtype=np.float32).reshape(10, 4)}, tmp_path / "x.safetensors")
    return read_safetensors(tmp_path / "x.safetensors")["a"]


def test_rows(ref: TensorRef) -> None:
    rows = read_rows(ref, 2, 4)
    assert rows.dtype == np.uint8 and rows.ndim == 1 and rows.flags.writeable
    assert rows.view(np.float32).tolist() == [*range(8, 16)]
    assert read_rows(ref, 10).size == 0


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, 11)])
def test_rows_that_are_not_there_are_a_bug_of_the_caller(ref: TensorRef, start: int, stop: int) -> None:
    with pytest.raises(ValueError, match="which has 10"):
        read_rows(ref, start, stop)


def test_many_threads_read_the_same_file(ref: TensorRef) -> None:
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda row: read_rows(ref, row % 10, row % 10 + 1).view(np.float32)[0], range(2000)))
    assert results == [4.0 * (row % 10) for row in range(2000)]


def test_a_file_that_shrinks_is_named(ref: TensorRef) -> None:
    read_rows(ref)
    os.truncate(ref.path, ref.path.stat().st_size - 1)
    with pytest.raises(WeightsError, match=r"x\.safetensors has shrunk"):
        read_rows(ref)
    ref.path.unlink()
    with pytest.raises(WeightsError, match=r"x\.safetensors cannot be read: No such file"):
        read_rows(ref)


def test_a_file_put_in_place_of_another_is_the_one_that_is_read(ref: TensorRef, tmp_path: Path) -> None:
    assert read_rows(ref).view(np.float32)[1] == 1
    save_file({"a": np.full((10, 4), 7, np.float32)}, tmp_path / "new")
    os.replace(tmp_path / "new", ref.path)
    assert read_rows(ref).view(np.float32)[1] == 7


def test_descriptors_are_bounded_and_not_closed_while_in_use(tmp_path: Path) -> None:
    files = _Files(limit=2)
    paths = [tmp_path / str(number) for number in range(6)]
    for number, path in enumerate(paths):
        path.write_text(str(number))
    with files.borrow(paths[0]) as first:
        for number, path in enumerate(paths[1:], 1):
            with files.borrow(path) as fd:
                assert os.pread(fd, 1, 0) == str(number).encode()
        assert os.pread(first, 1, 0) == b"0"
    with pytest.raises(OSError):
        os.pread(first, 1, 0)
    assert len(files._open) == 2


def test_hash(tmp_path: Path) -> None:
    data = os.urandom((4 << 20) * 2 + 17)
    (tmp_path / "x").write_bytes(data)
    seen: list[int] = []
    assert hash_file(tmp_path / "x", seen.append) == hashlib.sha256(data).hexdigest()
    assert seen == [4 << 20, 4 << 20, 17]
    with pytest.raises(SourceError, match="cannot be read"):
        hash_file(tmp_path / "y")


def test_reading_a_block_makes_only_that_block_resident(tmp_path: Path) -> None:
    path = tmp_path / "big"
    with path.open("wb") as file:
        file.truncate(1 << 28)
    program = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from mlxport.source import read_rows\n"
        "from mlxport.types import TensorRef\n"
        "ref = TensorRef('a', 'U8', (256, 1 << 20), Path(sys.argv[1]), 0)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for row in range(0, 256, 16): read_rows(ref, row, row + 16)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], env=environment, capture_output=True, text=True, timeout=60
    )
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(done.stdout) * unit < 64 << 20, done.stderr
