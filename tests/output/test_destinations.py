"""Destinations and disks: what may be replaced, what is full, what cannot be written, and names that work."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys

import pytest

from checkpoints import hash_tree
from command import finish, start, stop_after
from refusals import Case, check_error
from small_disks import heed_permissions


def refused(mlxport, named, *arguments) -> None:
    check_error(mlxport("convert", *arguments, "--verify", "none"), Case("", None, (str(named),), code=2))


def test_destination_is_the_source(source, mlxport):
    before = hash_tree(source)
    for options in ((), ("--overwrite",)):
        refused(mlxport, source, source, source, *options)
        refused(mlxport, source, source, f"{source}/", *options)
        refused(mlxport, source, source, source / "." / "..", *options)
    assert hash_tree(source) == before


def test_destination_inside_the_source(source, mlxport):
    before = hash_tree(source)
    refused(mlxport, source, source, source / "mlx" / "deep")
    link = source.parent / "link"
    link.symlink_to(source)
    refused(mlxport, source, source, link / "mlx")
    assert hash_tree(source) == before


def test_source_inside_the_destination(source, mlxport):
    refused(mlxport, source, source, source.parent, "--overwrite")
    assert source.is_dir()


def test_source_is_where_the_output_would_be_made(source, mlxport):
    """A leftover of mlxport given as source must not be emptied to make room."""
    left = source.rename(source.with_name("out.partial"))
    (left / ".mlxport-state.json").write_text('{"fingerprint": "another", "shards": {}}')
    before = hash_tree(left)
    refused(mlxport, left, left, source.with_name("out"))
    assert hash_tree(left) == before


def test_destination_is_a_file(source, tmp_path, mlxport):
    file = tmp_path / "file"
    file.write_text("precious")
    refused(mlxport, file, source, file)
    refused(mlxport, file, source, file, "--overwrite")
    refused(mlxport, file, source, file / "out")
    assert file.read_text() == "precious"


@pytest.mark.parametrize("content", ["notes.txt", "config.json"])
def test_only_model_folders_are_replaced(source, tmp_path, mlxport, content):
    other = tmp_path / "other"
    other.mkdir()
    (other / content).write_text('{"theme": "dark"}')
    before = hash_tree(other)
    refused(mlxport, other, source, other)
    refused(mlxport, other, source, other, "--overwrite")
    assert hash_tree(other) == before


@pytest.mark.parametrize("names", [["config.json", "thesis.tex"], ["config.json"]])
def test_a_config_alone_makes_no_model_folder(source, tmp_path, mlxport, names):
    other = tmp_path / "other"
    other.mkdir()
    for name in names:
        (other / name).write_text('{"model_type": "my_app"}')
    before = hash_tree(other)
    refused(mlxport, other, source, other, "--overwrite")
    assert hash_tree(other) == before


@pytest.mark.parametrize("name", ["notes.txt", "finetune/lora.safetensors", "train.py", "tokenizer/mine.json"])
def test_files_of_the_users_in_a_model_folder_are_not_deleted(source, converted, tmp_path, mlxport, name):
    out = tmp_path / "out"
    shutil.copytree(converted, out)
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("mine")
    before = hash_tree(out)
    refused(mlxport, name, source, out, "--overwrite")
    assert hash_tree(out) == before


def test_a_refused_run_leaves_the_state_of_another_alone(source, tmp_path, mlxport):
    """``DST.partial`` of an unfinished run, given as a destination."""
    partial = tmp_path / "out.partial"
    process = start("convert", source, tmp_path / "out", "--verify", "none", "--max-shard-size", "50KB")
    stop_after(process, partial)
    process.kill()
    finish(process)
    before = hash_tree(partial)
    refused(mlxport, partial, source, partial)
    refused(mlxport, partial, source, partial, "--dry-run")
    assert hash_tree(partial) == before
    assert mlxport("convert", source, tmp_path / "out", "--verify", "none", "--max-shard-size", "50KB").code == 0


def test_a_name_too_long_is_refused_before_anything_is_read(source, tmp_path, mlxport):
    refused(mlxport, "too long", source, tmp_path / ("a" * 250))


def test_destination_is_a_link(source, converted, tmp_path, mlxport):
    link = tmp_path / "link"
    link.symlink_to(shutil.copytree(converted, tmp_path / "real"))
    before = hash_tree(tmp_path / "real")
    refused(mlxport, link, source, link, "--overwrite")
    assert hash_tree(tmp_path / "real") == before
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "nowhere")
    refused(mlxport, dangling, source, dangling)


def test_destination_is_not_writable(source, small_disk, mlxport):
    disk = small_disk(1 << 20, read_only=True)
    refused(disk.run, disk.path, source, disk.path / "out")
    if sys.platform.startswith("linux"):
        result = mlxport("convert", source, "/proc/out", "--verify", "none")
        early = os.geteuid() != 0  # its mode lets root in, and then it refuses
        check_error(result, Case("", None, ("/proc/out",), code=2 if early else 1))


def test_destination_lacks_permission(source, tmp_path):
    """Root may write everywhere, so that it runs without that capability."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)

    def run(*arguments):
        return finish(start(*arguments, before=heed_permissions()))

    refused(run, closed, source, closed / "out")


def test_a_mount_point_cannot_be_replaced(source, small_disk):
    disk = small_disk(1 << 20)
    refused(disk.run, disk.path, source, disk.path, "--overwrite")


def test_names_that_cannot_be(source, tmp_path, mlxport):
    refused(mlxport, "cannot write", source, tmp_path / ("x" * 300))
    result = mlxport("convert", "y" * 5000, tmp_path / "out")
    check_error(result, Case("", None, ("yyy",)))
    check_error(mlxport("convert", tmp_path / "absent", tmp_path / "out"), Case("", None, ("absent",)))
    check_error(mlxport("convert", source / "config.json", tmp_path / "out"), Case("", None, ("config.json",)))
    for arguments in ((), (source,), (source, tmp_path / "out", "--hf-path", source)):
        check_error(mlxport("convert", *arguments), Case("", None, ("give exactly one",), code=2))


def test_disk_too_small_is_refused_before_writing(source, small_disk):
    disk = small_disk(200_000)
    result = disk.run("convert", source, disk.path / "out", "--verify", "none")
    check_error(result, Case("", None, (str(disk.path / "out"), "GB")))
    assert not any(disk.seen.iterdir())


def test_disk_full_half_way_can_be_resumed(many_shards, tmp_path, small_disk, mlxport):
    """The plan saw enough space; then others filled the disk."""
    disk = small_disk(40 << 20)
    options = ("--verify", "none", "--max-shard-size", "10KB")
    out, partial = disk.seen / "out", disk.seen / "out.partial"
    process = start("convert", many_shards, disk.path / "out", *options, before=disk.enter)
    stop_after(process, partial, 3)
    with open(disk.seen / "ballast", "wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while ballast.write(bytes(4096)):
            pass
    process.send_signal(signal.SIGCONT)
    result = finish(process)
    check_error(result, Case("", None, ("no space left", "out.partial")))
    assert "run the same command again" in result.err
    assert not out.exists()
    noted = json.loads((partial / ".mlxport-state.json").read_text())["shards"]  # one more may lie there, not noted
    finished = {name: (partial / name).stat().st_ino for name in noted}
    assert len(finished) >= 2
    (disk.seen / "ballast").unlink()
    assert disk.run("convert", many_shards, disk.path / "out", *options).code == 0
    assert {name: (out / name).stat().st_ino for name in finished} == finished
    assert mlxport("convert", many_shards, tmp_path / "undisturbed", *options).code == 0
    assert hash_tree(out) == hash_tree(tmp_path / "undisturbed")
    assert not partial.exists()


def test_file_size_limit_is_one_clear_error(source, tmp_path):
    """A limit on file sizes, as on FAT disks, is named; no bug is suspected."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)); "
        "from mlxport.cli.app import main; main(sys.argv[1:])"
    )
    result = finish(start("convert", source, tmp_path / "out", "--verify", "none", code=code))
    check_error(result, Case("", None, ("File too large",)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["with spaces", "ünï-codé-模型", "out/", "new/deeper/out", "-dash", "a'b\"c$d"])
def test_odd_names_work(name, source, tmp_path, mlxport, monkeypatch):
    odd = tmp_path / "söurce dir"
    source.rename(odd)
    monkeypatch.chdir(tmp_path)
    arguments = ("--verify", "none", "--", odd.name, name)
    assert mlxport("convert", *arguments).code == 0
    assert (tmp_path / name / "mlxport.json").is_file()
    assert not list((tmp_path / name).parent.glob("*.partial"))


def test_relative_paths_and_home(source, tmp_path, mlxport, monkeypatch):
    (tmp_path / "work/here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work/here")
    for name in (".", "..", "./", ""):
        refused(mlxport, "already exists", source, name)
    assert mlxport("convert", "../../source", "../there", "--verify", "none").code == 0
    assert (tmp_path / "work/there/config.json").is_file()
    monkeypatch.setenv("HOME", str(tmp_path / "work"))
    assert mlxport("convert", source, "~/home", "--verify", "none").code == 0
    assert (tmp_path / "work/home/config.json").is_file()
    monkeypatch.chdir(source)
    assert mlxport("convert", ".", "../from-dot", "--verify", "none").code == 0
