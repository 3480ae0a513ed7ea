from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
import threading
import time

import pytest

import mlxport.progress as module
from mlxport.progress import format_bytes, make_progress, roughly


def test_quiet_writes_nothing(capsys):
    with make_progress(100, "converting", quiet=True) as progress:
        progress.advance(100)
        progress.message("hello")
        progress.stage("hashing", 5)
    assert capsys.readouterr() == ("", "")


def test_fast_work_ends_with_one_line_on_stderr(capsys):
    with make_progress(1000, "converting") as progress:
        for _ in range(1000):
            progress.advance(1)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("converting: 1 kB in ") and err.count("\n") == 1


def test_slow_work_prints_a_line_per_tenth_with_rate_and_time_left(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    out = io.StringIO()
    with make_progress(1_000_000, "converting", stream=out) as progress:
        for _ in range(100):
            clock[0] += 1.0
            progress.advance(10_000)
    lines = out.getvalue().splitlines()
    assert lines[0] == "converting: 100 kB of 1 MB (10%), 10 kB/s, 1:30 left"
    assert len(lines) == 11  # ten tenths and the last
    assert lines[-1] == "converting: 1 MB in 1:40, 10 kB/s"


def test_very_slow_work_says_something_every_minute(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    out = io.StringIO()
    with make_progress(0, "fetching", stream=out) as progress:
        clock[0] = 1.0
        progress.advance(0)
        clock[0] = 61.0
        progress.advance(10)
    assert out.getvalue().splitlines()[0] == "fetching: 10 B, 0 B/s"


def test_stages_are_counted_apart_and_failures_leave_no_summary():
    out = io.StringIO()
    with pytest.raises(ValueError), make_progress(10, "reading", stream=out) as progress:
        progress.advance(10)
        progress.stage("writing", 20)
        progress.message("a note [bold]")
        progress.advance(20)
        raise ValueError
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("reading: 10 B in ")
    assert lines[1:] == ["a note [bold]"]


def test_advance_from_many_threads_loses_nothing():
    out = io.StringIO()
    with make_progress(8 * 5000, "converting", stream=out) as progress:
        threads = [threading.Thread(target=lambda: [progress.advance(1) for _ in range(5000)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert out.getvalue().startswith("converting: 40 kB in ")


SCRIPT = """
import time
from mlxport.progress import make_progress
with make_progress(2_000_000, "converting [x]") as progress:
    for _ in range(20):
        progress.advance(100_000)
        time.sleep(0.01)
    progress.message("a [note]")
    progress.stage("hashing", 10)
    progress.advance(10)
"""


@pytest.mark.parametrize("no_color", ["", "1"])
def test_a_terminal_gets_a_bar_and_no_color_is_respected(no_color):
    main, side = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "NO_COLOR": no_color}
    env["PYTHONPATH"] = os.path.dirname(os.path.dirname(module.__file__))
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], stderr=side, stdout=subprocess.PIPE, env=env)
    os.close(side)
    shown = b""
    while True:
        try:
            piece = os.read(main, 4096)
        except OSError:  # Linux answers EIO when the other side is closed
            break
        if not piece:
            break
        shown += piece
    os.close(main)
    assert process.communicate()[0] == b"" and process.returncode == 0
    text = shown.decode()
    assert "converting [x]" in text and "2.0/2.0 MB" in text and "a [note]" in text and "hashing" in text
    # Colours are SGR 30-37, 90-97 or 38;...; cursor movements stay.
    assert ("\x1b[38" in text or "\x1b[3" in text) is (no_color == "")


def test_importing_it_does_not_import_rich():
    env = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(module.__file__))}
    code = "import sys, mlxport.progress; sys.exit('rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == 0


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1500, "1.5 kB"),
        (999_400, "999 kB"),
        (999_500, "1 MB"),
        (999_999, "1 MB"),
        (1_000_000, "1 MB"),
        (999_960_000, "1 GB"),
        (2.472e9, "2.47 GB"),
        (5e15, "5000 TB"),
    ],
)
def test_format_bytes(nbytes, text):
    assert format_bytes(nbytes) == text


def test_no_size_is_told_in_powers():
    for exponent in range(1, 60):
        for factor in (0.9994, 0.9996, 0.99999, 1.0, 1.0004, 1.3):
            assert "e+" not in format_bytes(factor * 2**exponent) + format_bytes(factor * 10 ** (exponent // 4))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "1 second"),
        (17, "17 seconds"),
        (42.4, "40 seconds"),
        (89, "90 seconds"),
        (100, "2 minutes"),
        (49_759, "14 hours"),
        (45_000, "12 hours"),
        (93_600, "25 hours"),
        (900_000, "10 days"),
        (5.3e7, "20 months"),
        (9e7, "3 years"),
        (1e12, "31,690 years"),
    ],
)
def test_forecasts_are_rough(seconds, text):
    assert roughly(seconds) == text
