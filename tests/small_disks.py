"""Disks that are full or cannot be written, and permissions that count, for root and for anybody else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from command import Result, finish, start


@dataclass
class SmallDisk:
    """A tmpfs of its own, in a mount namespace of its own.

    Attributes:
        path: Where it is for a command that runs inside (``enter``).
        seen: Where this process sees the same files.
        enter: What runs a command where the disk is mounted.
        holder: The process that keeps the namespace.
    """

    path: Path
    seen: Path
    enter: Sequence[str]
    holder: subprocess.Popen[str]

    def run(self, *arguments: str | Path) -> Result:
        """The command line where the disk is mounted."""
        return finish(start(*arguments, before=self.enter))

    def close(self) -> None:
        """The mount ends with the last process that sees it."""
        self.holder.kill()
        self.holder.communicate()


def mount(folder: Path, size: int, read_only: bool = False) -> SmallDisk:
    """Mount it without root's help: in a user namespace, where anybody may; only there is it visible."""
    if not sys.platform.startswith("linux") or not shutil.which("unshare") or not shutil.which("nsenter"):
        pytest.skip("a disk of its own needs Linux and util-linux (unshare, nsenter)")
    folder.mkdir()
    options = f"size={size}" + (",ro" if read_only else "")
    script = 'mount -t tmpfs -o "$1" tmpfs "$0" && echo mounted && exec sleep 3600'
    spaces = ["--mount"] if os.geteuid() == 0 else ["--user", "--map-current-user", "--keep-caps", "--mount"]
    command = ["unshare", *spaces, "sh", "-c", script, str(folder), options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    holder = subprocess.Popen(command, text=True, **pipes)  # type: ignore[call-overload]
    if holder.stdout.readline() != "mounted\n":
        pytest.skip(f"this system lets no user mount a tmpfs in a namespace: {holder.communicate()[1].strip()}")
    target = ["nsenter", f"--target={holder.pid}", "--mount", f"--wd={os.getcwd()}"]
    if os.geteuid():
        target += ["--user", "--preserve-credentials"]
    return SmallDisk(folder, Path(f"/proc/{holder.pid}/root{folder}"), target, holder)


def heed_permissions() -> Sequence[str]:
    """What runs a command that may not write where the mode of a folder forbids it, whoever runs the tests."""
    return _without("-dac_override,-dac_read_search")


def heed_limits() -> Sequence[str]:
    """What runs a command that may not raise its own limits, whoever runs the tests."""
    return _without("-sys_resource")


def _without(capabilities: str) -> Sequence[str]:
    if os.geteuid():
        return ()
    if not shutil.which("setpriv"):
        pytest.skip("root may do everything, and setpriv (util-linux), which takes that away, is not here")
    return ("setpriv", f"--bounding-set={capabilities}", f"--inh-caps={capabilities}")
