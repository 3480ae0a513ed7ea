"""What the system refuses is one clear error: temporary files, limits, full outputs, names; and how signals end it."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import pytest

from checkpoints import hash_tree
from command import MAIN, Result, environment, finish, start, stop_after
from mlxport.output.surroundings import nothing_left_by_torch
from small_disks import heed_limits

PLAIN = ("--verify", "none")
FACTORY = Path(__file__).parents[1] / "port" / "vocoder.py"
SHOWN = ("inspect", "convert --verify none --dry-run", "convert --verify none --json")


def one_error(result: Result, *parts: str) -> None:
    """An error and a hint, each in its line, that hold ``parts``, and no word of a bug."""
    lines = result.err.splitlines()
    assert result.code in (1, 2), result
    assert [line.partition(":")[0] for line in lines[-2:]] == ["error", "hint"], result
    assert "Traceback" not in result.err and "bug" not in result.err
    assert all(part in result.err for part in parts), result.err


def commands(source: Path, folder: Path, converted: Path) -> dict[str, tuple[str | Path, ...]]:
    return {
        "convert": ("convert", source, folder / "out", *PLAIN),
        "port": ("port", f"{FACTORY}:dense", folder / "out"),
        "verify": ("verify", converted, "--against", source),
        "generate": ("generate", converted, "-p", "a", "--max-tokens", "2"),
    }


@pytest.mark.parametrize("variable", ["TMPDIR", "TMP"])
@pytest.mark.parametrize("command", ["convert", "port", "verify", "generate"])
def test_no_folder_for_temporary_files(command, variable, source, converted, mlxport, monkeypatch, tmp_path):
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setenv(variable, str(tmp_path / "nothing"))
    result = mlxport(*commands(source, tmp_path, converted)[command])
    one_error(result, f"{variable} names {tmp_path / 'nothing'}, which is not a folder", "hint: set TMPDIR")
    assert not (tmp_path / "out").exists()


def test_a_full_folder_for_temporary_files(source, small_disk, tmp_path):
    disk = small_disk(1 << 16)
    full = environment(TMPDIR=str(disk.path))
    result = finish(start("convert", source, tmp_path / "out", *PLAIN, before=disk.enter, env=full))
    one_error(result, f"TMPDIR names {disk.path}", "No space left")


LIMITS: dict[str, tuple[int, int, tuple[str, ...]]] = {
    "open files": (resource.RLIMIT_NOFILE, 1024, ("mlx-lm asks for 4096 open files", "ulimit -Hn 4096")),
    "file size": (resource.RLIMIT_FSIZE, 50_000, ("larger than a file may be here", "ulimit -f")),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_limits_of_the_process(limit, source, tmp_path):
    kind, most, parts = LIMITS[limit]
    code = "import resource, sys\nresource.setrlimit(int(sys.argv.pop(1)), (int(sys.argv.pop(1)),) * 2)\n"
    command = (str(kind), str(most), "convert", source, tmp_path / "out", *PLAIN)
    result = finish(start(*command, code=code + MAIN, before=heed_limits()))
    one_error(result, *parts)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
@pytest.mark.parametrize("shown", SHOWN)
def test_output_that_goes_nowhere(shown, source, tmp_path):
    command, *options = shown.split()
    destination = [tmp_path / "out"] if command == "convert" else []
    with open("/dev/full", "w") as full:
        result = finish(start(command, source, *destination, *options, stdout=full))
    one_error(result, "what the command prints cannot be written: No space left on device")


def test_a_log_on_a_full_disk_is_no_reason_to_stop(source, tmp_path):
    with open("/dev/full", "w") as full:
        assert finish(start("convert", source, tmp_path / "out", *PLAIN, stderr=full)).code == 0
    assert (tmp_path / "out" / "config.json").is_file()


def test_a_path_that_the_terminal_has_no_letters_for(source, tmp_path):
    renamed = source.rename(tmp_path / "mödel 模型")
    plain = environment(PYTHONIOENCODING="ascii", LC_ALL="C.UTF-8")
    result = finish(start("convert", renamed, tmp_path / "ausgäbe", *PLAIN, env=plain))
    assert result.code == 0 and r"ausg\xe4be" in result.out, result


@pytest.mark.parametrize("place", ["source", "destination", "converted", "port"])
def test_a_name_that_is_no_text(place, source, converted, mlxport, tmp_path):
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    if place == "source":
        result = mlxport("convert", source.rename(odd), tmp_path / "out", *PLAIN)
    elif place == "destination":
        result = mlxport("convert", source, odd, *PLAIN)
    elif place == "port":
        result = mlxport("port", f"{FACTORY}:dense", odd)
    else:
        odd.symlink_to(converted)
        result = mlxport("generate", odd, "-p", "a")
    one_error(result, "caf\\udce9' is not a name in UTF-8", "hint: rename it")


# --- signals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_process_that_is_ended_puts_away_and_goes_on_later(number, many_shards, mlxport, tmp_path):
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip(f"{number.name} is ignored here, as nohup has it, and stays so")
    command = ("convert", many_shards, tmp_path / "out", *PLAIN, "--max-shard-size", "50KB")
    (tmp_path / "temporary").mkdir()
    process = start(*command, env=environment(TMPDIR=str(tmp_path / "temporary")))
    stop_after(process, tmp_path / "out.partial", 3)
    process.send_signal(number)
    process.send_signal(signal.SIGCONT)
    result = finish(process)
    assert result.code == -number and "error: stopped: " in result.err, result
    assert [path for path in (tmp_path / "temporary").iterdir() if path.name != "mlx"] == []
    again = mlxport(*command)
    assert again.code == 0 and "resumed: " in again.err
    assert mlxport(*command[:2], tmp_path / "whole", *command[3:]).code == 0
    assert hash_tree(tmp_path / "out") == hash_tree(tmp_path / "whole")


FINALISED = """
import os, signal
from mlxport.cli import app
class Last:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        sum(1 for _ in range(10))
def finalise():
    last = Last()
    del last
    sum(1 for _ in range(10**7))
    print("went on")
app.app.command()(finalise)
app.main()
"""


def test_ctrl_c_inside_a_finaliser_is_heeded():
    result = finish(start("finalise", code=FINALISED))
    assert result.code == 130 and "went on" not in result.out, result
    assert result.err.splitlines() == ["error: stopped", "hint: run the same command again"]


def test_folders_that_torch_makes_are_taken_away_where_they_are_new_and_empty(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "torchinductor_before").mkdir()
    with nothing_left_by_torch():
        (tmp_path / "torchinductor_me").mkdir()
        (tmp_path / "torchinductor_used").mkdir()
        (tmp_path / "torchinductor_used/kernel").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["torchinductor_before", "torchinductor_used"]
