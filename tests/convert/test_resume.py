"""Atomic and resumable: killed, stopped, damaged or disturbed, the same command ends with the same bytes."""

from __future__ import annotations

import fcntl
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from checkpoints import hash_tree, leftovers, write_llama
from command import finish, start, stop_after

PLAIN = ("--verify", "none")
SHARDED = (*PLAIN, "--max-shard-size", "50KB")


@pytest.fixture
def undisturbed(source, tmp_path, mlxport) -> dict[str, str]:
    """What the conversion of ``source`` to small shards must end with."""
    assert mlxport("convert", source, tmp_path / "undisturbed", *SHARDED).code == 0
    return hash_tree(tmp_path / "undisturbed")


# --- killed and resumed ---------------------------------------------------------------------------------------------


def test_kill_before_every_step_and_go_on(forks, source, tmp_path):
    """Whatever file operation a kill comes before, the same command ends with the same bytes."""
    out = tmp_path / "out"
    command = ("convert", source, out, *PLAIN, "--max-shard-size", "150KB")
    events = forks.run(*command, watch=out)["events"]
    whole = hash_tree(out)
    assert len(list(out.glob("*.safetensors"))) == 2
    assert sum(event.startswith("os.rename") for event in events) > 5
    for moment, event in enumerate(events):
        shutil.rmtree(out)
        assert forks.run(*command, watch=out, kill_at=moment)["code"] == -signal.SIGKILL, event
        published = out.exists()  # then a kill comes too late to change anything but what is dropped at the end
        again = forks.run(*command, watch=out)
        assert again["code"] == (2 if published else 0), (event, again)
        assert hash_tree(out) == whole, event
        assert leftovers(tmp_path) == [], event


def test_kill_before_every_step_of_replacing(forks, source, converted, undisturbed, tmp_path):
    """With --overwrite there is, at any moment, the old model or the new one, and the same command ends well."""
    out = tmp_path / "out"
    old = hash_tree(converted)
    assert old != undisturbed
    command = ("convert", source, out, *SHARDED, "--overwrite")
    shutil.copytree(converted, out)
    events = forks.run(*command, watch=out)["events"]
    first = next(n for n, event in enumerate(events) if event == "os.rename out")
    assert first > len(events) / 3
    moments = [*range(0, first, 12), *range(first - 2, len(events))]
    for moment in moments:
        shutil.rmtree(out)
        shutil.copytree(converted, out)
        assert forks.run(*command, watch=out, kill_at=moment)["code"] == -signal.SIGKILL
        kept = out if out.exists() else out.with_name("out.partial") / ".mlxport-replaced"
        if moment <= first + 1:
            assert hash_tree(kept) == old, events[moment]
        assert forks.run(*command, watch=out)["code"] == 0, events[moment]
        assert hash_tree(out) == undisturbed, events[moment]
        assert leftovers(tmp_path) == [], events[moment]


def test_a_replaced_model_comes_back_when_the_next_run_does_not_replace(forks, source, converted, tmp_path):
    """Killed between the two renames: the old model has its name again as soon as anything looks."""
    out = Path(shutil.copytree(converted, tmp_path / "out"))
    command = ("convert", source, out, *SHARDED)
    events = forks.run(*command, "--overwrite", watch=out)["events"]
    between = next(n for n, event in enumerate(events) if event == "os.rename out") + 1
    shutil.rmtree(out)
    shutil.copytree(converted, out)
    forks.run(*command, "--overwrite", watch=out, kill_at=between)
    assert not out.exists()
    result = forks.run(*command, watch=out)
    assert result["code"] == 2 and "already exists" in result["stderr"]
    assert hash_tree(out) == hash_tree(converted)


def test_kill_at_random_moments(forks, many_shards, tmp_path):
    """Kills by the clock, inside reads, computing and writes; several in a row before the run that ends."""
    out = tmp_path / "out"
    command = ("convert", many_shards, out, *SHARDED, "-q", "4")
    begun = time.monotonic()
    assert forks.run(*command, watch=out)["code"] == 0
    took = time.monotonic() - begun
    whole = hash_tree(out)
    clock = random.Random(0)
    for _ in range(6):
        shutil.rmtree(out)
        for _ in range(2):
            forks.run(*command, watch=out, delay=clock.uniform(0.1, 1.0) * took)
            if out.exists():
                break
        if not out.exists():
            assert forks.run(*command, watch=out)["code"] == 0
        assert forks.run("convert", many_shards, out, *PLAIN, watch=out)["code"] == 2  # drops what is left, if any
        assert hash_tree(out) == whole


@pytest.fixture(scope="module")
def tenth_shard(forks, many_shards, tmp_path_factory) -> int:
    """The moment at which something first happens to the tenth name of a shard."""
    out = tmp_path_factory.mktemp("whole") / "out"
    events = forks.run("convert", many_shards, out, *SHARDED, watch=out)["events"]
    return [n for n, event in enumerate(events) if event.endswith(".safetensors.tmp")][9]


@pytest.fixture
def interrupted(forks, many_shards, tenth_shard, tmp_path) -> Path:
    """``out.partial`` of a run that was killed after some shards."""
    out = tmp_path / "out"
    command = ("convert", many_shards, out, *SHARDED)
    assert forks.run(*command, watch=out, kill_at=tenth_shard)["code"] == -signal.SIGKILL
    return tmp_path / "out.partial"


def identity(folder: Path) -> dict[str, tuple[int, int]]:
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.glob("*.safetensors")}


def test_finished_shards_are_not_written_again(interrupted, many_shards, mlxport):
    finished = identity(interrupted)
    assert len(finished) >= 3
    out = interrupted.with_name("out")
    report = json.loads(mlxport("convert", many_shards, out, *SHARDED, "--json").out)
    assert set(report["resumed"]) >= set(finished) - {max(finished)}
    now = identity(out)
    assert {name: now[name] for name in report["resumed"]} == {name: finished[name] for name in report["resumed"]}


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_finished_shard_is_written_again(interrupted, many_shards, mlxport, tmp_path, damage):
    victim = sorted(interrupted.glob("*.safetensors"))[1]
    content = bytearray(victim.read_bytes())
    if damage == "remove":
        victim.unlink()
    elif damage == "truncate":
        os.truncate(victim, len(content) // 2)
    else:
        content[-5] ^= 1
        victim.write_bytes(content)
    report = json.loads(mlxport("convert", many_shards, tmp_path / "out", *SHARDED, "--json").out)
    assert report["resumed"] and victim.name not in report["resumed"]
    assert mlxport("convert", many_shards, tmp_path / "whole", *SHARDED).code == 0
    assert hash_tree(tmp_path / "out") == hash_tree(tmp_path / "whole")


def test_another_quantizer_begins_again(forks, many_shards, tmp_path):
    """The names and shapes of the tensors are equal, what is in them is not."""
    plain, searched = (("convert", many_shards, tmp_path / "out", *SHARDED, "-q", "4", "--quantizer", quantizer)
                       for quantizer in ("rtn", "search"))  # fmt: skip
    events = forks.run(*searched, watch=tmp_path / "out")["events"]
    whole = hash_tree(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    middle = [n for n, event in enumerate(events) if event.endswith(".safetensors.tmp")][3]
    assert forks.run(*plain, watch=tmp_path / "out", kill_at=middle)["code"] == -signal.SIGKILL
    assert forks.run(*searched, watch=tmp_path / "out")["code"] == 0
    assert hash_tree(tmp_path / "out") == whole


@pytest.mark.parametrize("change", ["options", "source", "same size, newer"])
def test_another_conversion_begins_again(interrupted, many_shards, mlxport, tmp_path, change):
    options, source = [*SHARDED], many_shards
    if change == "options":
        options += ["--dtype", "float32"]
    else:
        source = write_llama(tmp_path / "other", layers=12, shards=2, seed=1)
        if change == "same size, newer":  # the same folder name, other content
            source = Path(shutil.copytree(many_shards, tmp_path / "again" / many_shards.name))
    report = json.loads(mlxport("convert", source, tmp_path / "out", *options, "--json").out)
    assert report["resumed"] == []
    assert mlxport("convert", source, tmp_path / "whole", *options).code == 0
    assert hash_tree(tmp_path / "out") == hash_tree(tmp_path / "whole")


@pytest.mark.parametrize("state", [b"", b"nonsense", b"[]", b'{"fingerprint": 1}', b"\xff"])
def test_a_damaged_state_begins_again(interrupted, many_shards, mlxport, state):
    (interrupted / ".mlxport-state.json").write_bytes(state)
    result = mlxport("convert", many_shards, interrupted.with_name("out"), *SHARDED, "--json")
    assert json.loads(result.out)["resumed"] == []


def test_a_state_with_damaged_entries_begins_again(interrupted, many_shards, mlxport):
    path = interrupted / ".mlxport-state.json"
    state = json.loads(path.read_text())
    state["shards"] = dict.fromkeys(state["shards"], 3)
    path.write_text(json.dumps(state))
    result = mlxport("convert", many_shards, interrupted.with_name("out"), *SHARDED, "--json")
    assert json.loads(result.out)["resumed"] == []


# --- not ours, in use, stopped --------------------------------------------------------------------------------------


def test_a_foreign_partial_folder_is_refused_and_kept(source, tmp_path, mlxport):
    foreign = tmp_path / "out.partial"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    result = mlxport("convert", source, tmp_path / "out", *PLAIN)
    assert result.code == 2 and "out.partial" in result.err and "not made by mlxport" in result.err
    assert (foreign / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_partial_name_that_is_taken_is_refused_and_kept(source, tmp_path, mlxport, kind):
    taken = tmp_path / "out.partial"
    if kind == "file":
        taken.write_text("precious")
    else:
        (tmp_path / "elsewhere").mkdir()
        taken.symlink_to("elsewhere")
    result = mlxport("convert", source, tmp_path / "out", *PLAIN)
    assert result.code == 2 and "out.partial" in result.err and "bug" not in result.err
    assert taken.is_symlink() or taken.read_text() == "precious"


def test_a_neighbour_called_replaced_is_kept(source, converted, tmp_path, mlxport):
    """Nothing beside DST and DST.partial is ours to touch."""
    neighbour = tmp_path / "out.replaced"
    neighbour.mkdir()
    (neighbour / "thesis.txt").write_text("years of work")
    shutil.copytree(converted, tmp_path / "out")
    assert mlxport("convert", source, tmp_path / "out", *PLAIN, "--overwrite").code == 0
    assert (neighbour / "thesis.txt").read_text() == "years of work"


def test_a_second_run_at_once_is_refused(many_shards, tmp_path, mlxport):
    out = tmp_path / "out"
    process = start("convert", many_shards, out, *SHARDED)
    stop_after(process, tmp_path / "out.partial")
    second = mlxport("convert", many_shards, out, *SHARDED)
    assert second.code == 2 and "another run is writing" in second.err
    process.send_signal(signal.SIGCONT)
    assert finish(process).code == 0
    assert (out / "mlxport.json").is_file()


def test_what_appears_meanwhile_is_not_replaced(many_shards, converted, tmp_path, mlxport):
    """Somebody else puts a model under the final name while we convert: theirs stays, ours waits."""
    out = tmp_path / "out"
    process = start("convert", many_shards, out, *SHARDED)
    stop_after(process, tmp_path / "out.partial")
    shutil.copytree(converted, out)
    process.send_signal(signal.SIGCONT)
    result = finish(process)
    assert result.code == 2 and "already exists" in result.err
    assert hash_tree(out) == hash_tree(converted)
    report = json.loads(mlxport("convert", many_shards, out, *SHARDED, "--overwrite", "--json").out)
    assert len(report["resumed"]) == len(report["plan"]["shards"])


def test_the_lock_ends_with_the_process(source, tmp_path, mlxport):
    (tmp_path / "out.partial").mkdir()
    descriptor = os.open(tmp_path / "out.partial", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert mlxport("convert", source, tmp_path / "out", *PLAIN).code == 2
    os.close(descriptor)
    assert mlxport("convert", source, tmp_path / "out", *PLAIN).code == 0


def test_ctrl_c_leaves_a_state_that_goes_on(many_shards, tmp_path, mlxport):
    out = tmp_path / "out"
    process = start("convert", many_shards, out, *SHARDED)
    stop_after(process, tmp_path / "out.partial", 3)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    result = finish(process)
    assert result.code == 130, result
    assert "error: stopped" in result.err and "run the same command again" in result.err
    assert "Traceback" not in result.err and not out.exists()
    finished = identity(tmp_path / "out.partial")
    report = json.loads(mlxport("convert", many_shards, out, *SHARDED, "--json").out)
    assert len(report["resumed"]) >= 2  # the third was there, but perhaps not recorded yet
    assert {name: identity(out)[name] for name in report["resumed"]}.items() <= finished.items()


# --- replaced, planned ----------------------------------------------------------------------------------------------


def test_the_old_model_is_there_until_the_end(many_shards, converted, tmp_path):
    out = Path(shutil.copytree(converted, tmp_path / "out"))
    process = start("convert", many_shards, out, *SHARDED, "--overwrite")
    stop_after(process, tmp_path / "out.partial", 3)
    assert hash_tree(out) == hash_tree(converted)
    process.send_signal(signal.SIGCONT)
    assert finish(process).code == 0
    assert hash_tree(out).keys() != hash_tree(converted).keys()
    assert leftovers(tmp_path) == []
