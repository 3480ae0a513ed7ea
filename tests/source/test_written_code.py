"""Whose code may run: that of this installation, wherever it lies, and no other without trust."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mlxport.errors import ConfigError, SourceError, UnsafeError
from mlxport.source import written_code
from mlxport.source.written_code import (
    model_file,
    refuse_model_file,
    remember,
    source_to_run,
    store,
    written_here,
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache directory, and a process that has written nothing."""
    monkeypatch.setenv("MLXPORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(written_code, "_just_written", set())
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "model.py"
    path.write_text("x = 1\n")
    return path


def forget(monkeypatch):
    """As another process of the same installation sees it."""
    monkeypatch.setattr(written_code, "_just_written", set())


def test_only_what_was_written_here_runs(source, tmp_path, monkeypatch):
    with pytest.raises(UnsafeError, match="model.py") as caught:
        source_to_run(source, False)
    assert "--trust-remote-code" in caught.value.hint
    assert source_to_run(source, True) == b"x = 1\n"
    assert not written_here(b"x = 1\n"), "trust for once is not trust for ever"
    assert remember(source)
    forget(monkeypatch)
    moved = source.rename(tmp_path / "other.py")
    assert source_to_run(moved, False) == b"x = 1\n"
    moved.write_text("x = 2\n")
    with pytest.raises(UnsafeError, match="other.py"):
        source_to_run(moved, False)


def test_the_store_is_private_and_in_the_cache(source, cache):
    previous = os.umask(0)
    try:
        assert remember(source) and remember(source)
    finally:
        os.umask(previous)
    (note,) = (cache / "written-code").iterdir()
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (cache, note.parent, note)}
    assert modes == {cache: 0o700, note.parent: 0o700, note: 0o600} and note.stat().st_size == 0


def test_a_store_that_others_can_write_to_counts_for_nothing(source, cache, monkeypatch):
    assert remember(source)
    forget(monkeypatch)
    (cache / "written-code").chmod(0o770)
    assert not written_here(b"x = 1\n")
    assert not remember(source)
    assert written_here(b"x = 1\n"), "this process may still run what it wrote"
    (cache / "written-code").chmod(0o700)
    forget(monkeypatch)
    assert written_here(b"x = 1\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_nor_does_one_that_belongs_to_another(source, cache, monkeypatch):
    assert remember(source)
    forget(monkeypatch)
    os.chown(cache / "written-code", 12345, 12345)
    assert not written_here(b"x = 1\n")


def test_a_cache_that_cannot_be_made(source, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MLXPORT_CACHE", str(tmp_path / "file"))
    assert not remember(source) and written_here(b"x = 1\n")
    forget(monkeypatch)
    assert not written_here(b"x = 1\n")


def _loop(path):
    path.symlink_to(path)


def _elsewhere(path):
    (path.parent / "elsewhere").mkdir(mode=0o700, exist_ok=True)
    path.symlink_to(path.parent / "elsewhere")


@pytest.mark.parametrize("place", ["", "written-code", "written-code/note"])
@pytest.mark.parametrize("make", [os.mkfifo, Path.touch, _loop, _elsewhere], ids=["pipe", "file", "loop", "link"])
def test_whatever_lies_in_its_place_is_neither_waited_for_nor_followed(make, place, source, cache, monkeypatch):
    path = cache / place.replace("note", hashlib.sha256(b"x = 1\n").hexdigest())
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    make(path)
    # A cache that the user keeps behind a link is one; a file with a note's name is the note.
    kept = (make, place) in ((_elsewhere, ""), (Path.touch, "written-code/note"))
    path.chmod(0o600) if make is Path.touch else None
    assert remember(source) is kept and written_here(b"x = 1\n")
    forget(monkeypatch)
    assert written_here(b"x = 1\n") is kept
    if make is _elsewhere and place == "written-code":
        assert not [*path.iterdir()], "nothing is put where a link leads"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"MLXPORT_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a/written-code"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/mlxport/written-code"),
        ({"HOME": "/home/me"}, "/home/me/.cache/mlxport/written-code"),
        ({"MLXPORT_CACHE": "here", "XDG_CACHE_HOME": ".", "HOME": "/home/me"}, "/home/me/.cache/mlxport/written-code"),
        ({"HOME": "."}, None),
    ],
)
def test_where_the_store_is(variables, expected, monkeypatch):
    for name in ("MLXPORT_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert store() == (None if expected is None else Path(expected))


def test_many_processes_note_at_once(tmp_path, cache):
    files = [tmp_path / f"{number}.py" for number in range(4)]
    for path in files:
        path.write_text(path.name)
    code = "import sys; from pathlib import Path; from mlxport.source.written_code import remember\n"
    code += "assert all(remember(Path(name)) for name in sys.argv[1:])"
    runs = [subprocess.Popen([sys.executable, "-c", code, *map(str, files)]) for _ in range(3)]
    assert [run.wait() for run in runs] == [0, 0, 0]
    assert all(written_here(path.read_bytes()) for path in files) and len([*(cache / "written-code").iterdir()]) == 4


@pytest.mark.parametrize("name", ["../evil.py", "/tmp/evil.py", "a/../../evil.py", "evil\x1b.py", ""])
def test_code_outside_of_the_folder_is_refused_even_if_trusted(name, tmp_path):
    with pytest.raises(UnsafeError, match="not a plain path"):
        refuse_model_file(tmp_path, {"model_file": name}, True)


@pytest.mark.parametrize("name", [5, ["model.py"], {"a": 1}, True])
def test_a_name_that_is_none(name, tmp_path):
    with pytest.raises(ConfigError, match="model_file is not the name of a file"):
        model_file(tmp_path, {"model_file": name})


def test_code_that_is_imported_by_others_needs_trust(source, tmp_path):
    """An import may take its byte code from __pycache__, whatever the source is."""
    assert remember(source)
    with pytest.raises(UnsafeError, match="model.py"):
        refuse_model_file(tmp_path, {"model_file": "model.py"}, False)
    refuse_model_file(tmp_path, {"model_file": "model.py"}, True)
    refuse_model_file(tmp_path, {}, False)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_not_a_file_is_not_waited_for(make, tmp_path):
    make(tmp_path / "model.py")
    with pytest.raises(SourceError, match="not a regular file"):
        source_to_run(tmp_path / "model.py", False)
