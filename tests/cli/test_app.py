"""The command line itself: what goes where, how errors look, which spellings are understood."""

from __future__ import annotations

import json
import logging
import os
import pty
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from command import environment, finish, start
from mlxport.cli import app

PLAIN = ("--verify", "none")


def test_data_to_stdout_the_rest_to_stderr(source, tmp_path, mlxport):
    result = mlxport("convert", source, tmp_path / "out", *PLAIN)
    assert result.code == 0
    assert "parameters" in result.out and f"done: {tmp_path / 'out'}" in result.out
    assert result.err.startswith("converting source") and "converting" not in result.out


def test_quiet_is_quiet(source, tmp_path, mlxport):
    assert mlxport("convert", source, tmp_path / "out", *PLAIN, "--quiet").err == ""


def test_json_is_one_object(source, tmp_path, mlxport):
    result = mlxport("convert", source, tmp_path / "out", *PLAIN, "--json")
    assert (result.code, result.err) == (0, "")
    report = json.loads(result.out)
    assert report["destination"] == str(tmp_path / "out") and report["verified"] is False
    assert json.loads(mlxport("inspect", source, "--json").out)


@pytest.mark.parametrize(
    ("arguments", "code", "kind"),
    [
        (("convert", "absent/folder", "out"), 1, "SourceError"),
        (("convert", ".", "..", "--json"), 2, "DestinationError"),
        (("convert", "--bogus"), 2, "UsageError"),
        (("convert", "a", "b", "--q-bits", "x"), 2, "UsageError"),
        (("nonsense",), 2, "UsageError"),
    ],
)
def test_an_error_is_one_object_too(arguments, code, kind, tmp_path, mlxport, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = mlxport(*arguments, "--json")
    error = json.loads(result.out)["error"]
    assert (result.code, error["kind"]) == (code, kind)
    assert result.err == f"error: {error['message']}\nhint: {error['hint']}\n"


def test_one_call_does_not_colour_the_next(tmp_path, mlxport):
    """-v and --json of one call are forgotten in the next."""
    assert "Traceback" in mlxport("-v", "convert", tmp_path / "absent", tmp_path / "out", "--json").err
    result = mlxport("convert", tmp_path / "absent", tmp_path / "out")
    assert result.out == "" and "Traceback" not in result.err


@pytest.mark.parametrize("flag", ["-v", "--verbose"])
def test_verbose_shows_the_traceback(flag, tmp_path, mlxport):
    result = mlxport("convert", tmp_path / "absent", tmp_path / "out", flag)
    assert result.code == 1 and "Traceback" in result.err and "SourceError" in result.err


def test_without_a_command_it_helps(mlxport):
    result = mlxport()
    assert result.code == 2 and "convert" in result.out


@pytest.mark.parametrize(
    "arguments",
    [
        ("{s}", "{d}", "-q"),
        ("-q", "{s}", "{d}"),
        ("{s}", "-q", "4", "{d}"),
        ("{s}", "{d}", "-q4"),
        ("{s}", "{d}", "--quantize=4"),
        ("--hf-path", "{s}", "--mlx-path", "{d}", "-q"),
        ("--model", "{s}", "--mlx-path", "{d}", "-q", "--q-bits", "4", "--q-group-size", "64", "--q-mode", "affine"),
    ],
)
def test_spellings_of_four_bits(arguments, source, tmp_path, mlxport):
    given = [text.format(s=source, d=tmp_path / "out") for text in arguments]
    assert mlxport("convert", *given, *PLAIN).code == 0
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["quantization"] == {"group_size": 64, "bits": 4, "mode": "affine"}


def test_a_bar_on_a_terminal(source, tmp_path):
    outer, inner = pty.openpty()
    process = start("convert", source, tmp_path / "out", *PLAIN, stderr=inner, env=environment(TERM="xterm"))
    os.close(inner)
    shown = b""
    while True:
        try:
            piece = os.read(outer, 4096)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(outer)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "done: " in out
    assert b"converting source" in shown and b"\x1b[" in shown
    assert re.search(rb"\d(\.\d)?/\d+(\.\d)? ?kB", shown), shown[-300:]


def test_a_closed_pipe_is_no_traceback(source, tmp_path):
    command = f'"{sys.executable}" -m mlxport inspect "{source}" | true'
    result = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment())
    assert "Traceback" not in result.stderr and "bug" not in result.stderr


def test_ctrl_c_before_anything_is_written(tmp_path):
    """Whenever it comes, one line and 130."""
    code = (
        "import os, signal, sys\n"
        "import mlxport.convert.convert\n"
        "sys.addaudithook(lambda e, a: os.kill(os.getpid(), signal.SIGINT) if e == 'os.scandir' else None)\n"
        "from mlxport.cli.app import main\nmain(sys.argv[1:])"
    )
    folder = Path(tmp_path / "source")
    folder.mkdir()
    result = finish(start("convert", folder, tmp_path / "out", code=code))
    assert result.code == 130 and result.err.startswith("error: stopped\nhint: ")


def test_a_warning_of_ours_is_one_line(monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    before = logging.getLogRecordFactory()
    app._printable_logs()
    logging.setLogRecordFactory(before)
    ours, theirs = app.__file__, "/elsewhere/app.py"
    assert warnings.formatwarning("long\x1b[2J", UserWarning, ours, 3) == "warning: long\\x1b[2J\n"
    assert "/elsewhere/app.py:3: UserWarning: long" in warnings.formatwarning("long", UserWarning, theirs, 3)
