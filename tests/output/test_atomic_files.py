"""A file that is replaced is the old one or the new one, whatever goes wrong in between."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from mlxport.errors import DiskError
from mlxport.output.atomic_files import beside, replace_arrays, replace_json, replace_text, replacing

SOURCES = Path(__file__).parents[2] / "src"
OLD = "the old content"


def write_text(path: Path, size: int) -> None:
    replace_text(path, "x" * size)


def write_json(path: Path, size: int) -> None:
    replace_json(path, ["x" * size])


def write_arrays(path: Path, size: int) -> None:
    replace_arrays(path, {"a": mx.zeros((size,), mx.uint8)}, {"of": "a test"})


def write_bytes(path: Path, size: int) -> None:
    with replacing(path) as file:
        file.write(bytes(size))


WRITERS = {writer.__name__: writer for writer in (write_text, write_json, write_arrays, write_bytes)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "thing.safetensors"
    path.write_text(OLD)
    return path


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_written_takes_the_place_and_nothing_stays_beside_it(name, path):
    WRITERS[name](path, 1000)
    assert path.stat().st_size >= 1000
    assert os.listdir(path.parent) == [path.name]


def test_contents(path):
    replace_text(path, "Grüße\n")
    assert path.read_bytes() == "Grüße\n".encode()
    replace_json(path, {"a": [1, None]})
    assert json.loads(path.read_text()) == {"a": [1, None]}
    replace_arrays(path, {"a": mx.arange(4)}, {"of": "a test"})
    arrays, metadata = mx.load(str(path), return_metadata=True)
    assert (arrays["a"].tolist(), metadata["of"]) == ([0, 1, 2, 3], "a test")


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt(), OSError(errno.EIO, "broken")])
def test_an_error_in_the_middle_leaves_the_old_file_and_goes_through(error, path):
    with pytest.raises(type(error)) as found, replacing(path) as file:
        file.write(b"half of it")
        raise error
    assert found.value is error
    assert (path.read_text(), os.listdir(path.parent)) == (OLD, [path.name])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_as_one(number, path):
    with pytest.raises(DiskError, match="no space left on the disk while writing .*thing"), beside(path) as temporary:
        temporary.write_text("half of it")
        raise OSError(number, os.strerror(number))
    assert (path.read_text(), os.listdir(path.parent)) == (OLD, [path.name])


def limited(name: str, path: Path) -> subprocess.CompletedProcess[str]:
    """Run a writer in a process whose files may not become as large as it wants: writing fails in the middle."""
    code = (
        "import resource, signal, sys; from pathlib import Path; "
        f"sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(SOURCES)!r}]; "
        "from test_atomic_files import WRITERS; "
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000)); "
        f"WRITERS[{name!r}](Path({str(path)!r}), 200_000)"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", WRITERS)
def test_a_write_that_fails_for_real_leaves_the_old_file(name, path):
    result = limited(name, path)
    assert result.returncode == 1
    assert "File too large" in result.stderr or "no space left on the disk" in result.stderr
    assert (path.read_text(), os.listdir(path.parent)) == (OLD, [path.name])


@pytest.mark.parametrize("step", ["open", "os.fsync", "os.rename"])
def test_a_kill_at_any_step_leaves_the_old_file(step, path):
    """Kills the process by an audit hook, before it does the step; ``os.fsync`` raises no event, so it is wrapped."""
    code = (
        "import os, signal, sys; from pathlib import Path; "
        f"sys.path.insert(0, {str(SOURCES)!r}); "
        "from mlxport.output import atomic_files; "
        "kill = lambda: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"step, path = {step!r}, Path({str(path)!r})\n"
        "def hook(event, args):\n"
        "    if event == step and 'thing' in str(args[0]): kill()\n"
        "sys.addaudithook(hook)\n"
        "fsync = os.fsync\n"
        "os.fsync = lambda fd: kill() if step == 'os.fsync' else fsync(fd)\n"
        "atomic_files.replace_text(path, 'the new content')\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert path.read_text() == OLD


def test_file_and_folder_are_on_disk_before_it_is_over(path, monkeypatch):
    """The order in which things are made durable: the content, the name, the folder that holds the name."""
    events = []
    fsync, replace = os.fsync, os.replace

    def sync(descriptor: int) -> None:
        events.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", lambda old, new: (events.append("rename"), replace(old, new)))
    replace_text(path, "new")
    assert events == ["file", "rename", "folder"]
