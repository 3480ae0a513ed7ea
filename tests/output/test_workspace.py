"""The folder that is being made: what counts as space, as ours, as free to take."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mlxport.errors import DestinationError, DiskError
from mlxport.output.blocks import Findings
from mlxport.output.shards import Written
from mlxport.output.workspace import absolute, check_space, free_space, open_workspace, partial_folder, space_taken

DONE = Written("0" * 64, 5, Findings({"a": 1}, {"b": 2}))


@pytest.mark.parametrize(
    ("given", "expected"),
    [("out/", "/here/out"), (".", "/here"), ("..", "/"), ("a/../b", "/here/b"), ("~/x", "/home/x"), ("/x//y", "/x/y")],
)
def test_absolute(given, expected, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home")
    monkeypatch.chdir(tmp_path)
    assert absolute(given) == Path(expected.replace("/here", str(tmp_path), 1) if given != ".." else tmp_path.parent)


def test_an_unknown_home_is_a_name():
    assert absolute("~nobody-of-that-name/x").name == "x"


def test_state_survives(tmp_path):
    out = tmp_path / "out"
    with open_workspace(out, {"source": "one"}) as workspace:
        workspace.record("model.safetensors", DONE)
    with open_workspace(out, {"source": "one"}) as workspace:
        assert workspace.done == {"model.safetensors": DONE}
        (workspace.folder / "model.safetensors").write_bytes(b"12345")
        workspace.forget("model.safetensors")
        assert workspace.done == {} and not (workspace.folder / "model.safetensors").exists()


def test_another_fingerprint_empties_the_folder(tmp_path):
    with open_workspace(tmp_path / "out", {"source": "one"}) as workspace:
        workspace.record("model.safetensors", DONE)
        (workspace.folder / "deep").mkdir()
        (workspace.folder / "deep/file").write_text("x")
    with open_workspace(tmp_path / "out", {"source": "two"}) as workspace:
        assert workspace.done == {}
        assert [path.name for path in workspace.folder.iterdir()] == [".mlxport-state.json"]


def test_one_at_a_time(tmp_path):
    with (
        open_workspace(tmp_path / "out", {"source": "one"}),
        pytest.raises(DestinationError, match="another run"),
        open_workspace(tmp_path / "out", {"source": "one"}),
    ):
        pass
    with open_workspace(tmp_path / "out", {"source": "one"}):
        pass


def test_publish_drops_what_is_not_kept(tmp_path):
    with open_workspace(tmp_path / "out", {"source": "one"}) as workspace:
        for name in ("kept", "dropped.tmp", "deep/kept", "deep/dropped", "gone/dropped"):
            (workspace.folder / name).parent.mkdir(exist_ok=True)
            (workspace.folder / name).write_text(name)
        workspace.publish({"kept", "deep/kept"})
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert left == ["out", "out/deep", "out/deep/kept", "out/kept"]


def test_publish_does_not_replace_what_it_may_not(tmp_path):
    with open_workspace(tmp_path / "out", {"source": "one"}) as workspace:
        (tmp_path / "out").mkdir()
        with pytest.raises(DestinationError, match="already exists"):
            workspace.publish(set())
    assert partial_folder(tmp_path / "out").is_dir()


def test_an_interrupted_replacement_is_undone(tmp_path):
    """As a kill between the two renames leaves it."""
    out = tmp_path / "out"
    with open_workspace(out, {"source": "one"}) as workspace:
        (workspace.folder / ".mlxport-replaced").mkdir()
        (workspace.folder / ".mlxport-replaced/config.json").write_text(json.dumps({"model_type": "llama"}))
        (workspace.folder / ".mlxport-replaced/model.safetensors").write_bytes(b"weights")
    with open_workspace(out, {"source": "one"}, overwrite=True):
        assert (out / "config.json").is_file()
        assert not (partial_folder(out) / ".mlxport-replaced").exists()


def test_holes_take_no_space(tmp_path):
    folder = partial_folder(tmp_path / "out")
    assert space_taken(tmp_path / "out") == 0
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(os.urandom(100_000))
    with open(folder / "model-2.safetensors.tmp", "wb") as file:
        file.truncate(1 << 40)
    assert 100_000 <= space_taken(tmp_path / "out") < 1_000_000


def test_space_is_that_of_the_nearest_folder(tmp_path):
    free = free_space(tmp_path / "not/there/yet")
    assert free > 0
    with pytest.raises(DiskError, match="GB free"):
        check_space(tmp_path / "not/there/yet", 1 << 60)
    check_space(tmp_path / "not/there/yet", 1 << 60, present=1 << 60)
