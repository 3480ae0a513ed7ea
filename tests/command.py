"""The command line in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
MAIN = "from mlxport.cli.app import main\nmain()"


class Result(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def environment(**changes: str) -> dict[str, str]:
    """That of this process, with the package's sources importable."""
    path = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, **changes}


def _heed_interrupts() -> None:
    """As in a terminal, also where the tests themselves run in the background, with SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(
    *arguments: str | Path, code: str | None = None, before: Sequence[str] = (), **options: object
) -> subprocess.Popen[str]:
    """The command line in a process of its own; ``code`` runs instead of ``-m mlxport``, ``before`` is what runs it."""
    device = os.environ.get("MLXPORT_TEST_DEVICE")
    if device:  # as in this process; see conftest.py
        code = f"import mlx.core as mx\nmx.set_default_device(mx.{device})\n{code or MAIN}"
    head = ["-m", "mlxport"] if code is None else ["-c", code]
    command = [*before, sys.executable, *head, *map(str, arguments)]
    settings = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
        "env": environment(),
        "preexec_fn": _heed_interrupts,
    }
    return subprocess.Popen(command, **{**settings, **options})  # type: ignore[call-overload,no-any-return]


def finish(process: subprocess.Popen[str], timeout: float = 120) -> Result:
    """Wait for the end of a process."""
    out, err = process.communicate(timeout=timeout)
    return Result(process.returncode, out or "", err or "")


def stop_after(process: subprocess.Popen[str], partial: Path, shards: int = 1) -> None:
    """Let a conversion run until so many shards are finished, then freeze it (SIGSTOP)."""
    deadline = time.monotonic() + 120
    while len(list(partial.glob("model*.safetensors"))) < shards:
        assert process.poll() is None, f"it ended before: {process.communicate()}"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    assert partial.is_dir(), "it was faster than this test"


class Forks:
    """Runs that are killed at a chosen moment; see forked_runs.py."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def run(self, *arguments: str | Path, watch: Path, **ends: object) -> dict:
        """One run; ``ends`` says when it is killed: ``kill_at``, ``kill_on``, ``delay``."""
        request = {"arguments": [*map(str, arguments)], "watch": str(watch), **ends}
        assert self.process.stdin and self.process.stdout
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return dict(json.loads(self.process.stdout.readline()))


@contextmanager
def forking() -> Iterator[Forks]:
    """A warm process, and what asks it for runs."""
    command = [sys.executable, str(Path(__file__).with_name("forked_runs.py"))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=environment(), **pipes) as process:  # type: ignore[call-overload]
        yield Forks(process)
        process.stdin.close()
        process.wait(timeout=60)
