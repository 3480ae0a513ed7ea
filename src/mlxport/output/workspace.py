"""The destination while it is being made: ``DST.partial``, locked, resumable, and renamed only when it is whole.

Where DST exists it moves into ``DST.partial`` first, so nothing beside the two names is ever touched::

    DST, DST.partial  →  DST.partial/.mlxport-replaced  →  DST/.mlxport-replaced  →  DST

The next run puts right whatever a kill between these steps leaves.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlxport.errors import DestinationError, DiskError, SourceError, disk_full
from mlxport.layouts.table import layouts
from mlxport.output.atomic_files import replace_json, sync
from mlxport.output.blocks import Findings
from mlxport.output.fingerprint import other_parts
from mlxport.output.shards import Written
from mlxport.source.jsonfile import read_object
from mlxport.source.weight_files import SIDE_PATTERNS, matches

_STATE = ".mlxport-state.json"
_REPLACED = ".mlxport-replaced"
RECORD = "mlxport.json"
# What --overwrite may delete: the files that converters and save_pretrained write.
_OWN = (
    *(pattern for pattern in SIDE_PATTERNS if pattern != "*.py"),
    *(f"{kind}_*.py" for kind in ("configuration", "image_processing", "modeling", "processing", "tokenization")),
    *("model*.safetensors", "model*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model*.bin.index.json"),
    *("recipe.toml", "report.html", "report.json"),
    *("config.json", "weights*.npz", "weights*.safetensors", ".gitattributes", ".DS_Store", RECORD, _STATE),
)


def absolute(path: str | Path) -> Path:
    """``path`` with ``~`` expanded, ``.`` and ``..`` resolved by name, and no link followed."""
    return Path(os.path.abspath(os.path.expanduser(path)))


def partial_folder(destination: Path) -> Path:
    """Where ``destination`` is made."""
    return destination.with_name(destination.name + ".partial")


def check_destination(destination: Path, source: str, overwrite: bool) -> None:
    """Refuse a destination that would harm something, before anything is read or fetched.

    Args:
        destination: The output folder, absolute.
        source: The source as the user gave it; what is no path of this machine touches nothing.
        overwrite: Whether a model folder may be replaced.

    Raises:
        DestinationError: It exists (without ``overwrite``), is no model folder (with it), cannot be written, or
            touches the source.
    """
    try:
        _check_apart(destination, source)
        _finish(destination)
        _check_existing(destination, overwrite)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(partial_folder(destination))  # a name that is too long shows here
        _check_writable(destination)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DestinationError(f"cannot write to {destination}: {reason}", hint="choose another path") from error


def _check_apart(destination: Path, source: str) -> None:
    origin = absolute(source)
    if not os.path.exists(origin):
        return
    origin = origin.resolve()
    for target in (destination.resolve(), partial_folder(destination).resolve()):
        if target == origin or origin in target.parents:
            hint = "choose a folder outside the source"
            raise DestinationError(f"the destination {destination} lies inside the source {source}", hint=hint)
        if target in origin.parents:
            hint = "choose a folder that does not contain the source"
            raise DestinationError(f"the source {source} lies inside the destination {destination}", hint=hint)


def _check_existing(destination: Path, overwrite: bool) -> None:
    if not os.path.lexists(destination):
        return
    if not overwrite:
        raise DestinationError(f"{destination} already exists", hint="choose another path, or add --overwrite")
    if not destination.is_dir() or destination.is_symlink():
        raise DestinationError(f"{destination} is not a folder", hint="choose another path")
    if os.path.ismount(destination):
        hint = "choose a folder in it"
        raise DestinationError(f"{destination} is where a disk is mounted and cannot be replaced", hint=hint)
    if any(destination.iterdir()) and not _is_model(destination):
        hint = "--overwrite replaces only model folders; choose another path"
        raise DestinationError(f"{destination} holds something that is not a model", hint=hint)
    if foreign := _foreign(destination):
        more = f" and {len(foreign) - 4} more" if len(foreign) > 4 else ""
        raise DestinationError(
            f"{destination} holds files that are not a model's, which --overwrite would delete: "
            f"{', '.join(foreign[:4])}{more}",
            hint="move them elsewhere, or choose another path",
        )


def _is_model(folder: Path) -> bool:
    """Whether the folder is what a conversion, or a library that saves models, leaves; others have configs too."""
    try:
        config = read_object(folder / "config.json", SourceError, unique=False)
    except SourceError:
        return False
    named = "model_type" in config or "architectures" in config
    return named and any(path.suffix in (".safetensors", ".bin", ".npz") for path in folder.iterdir())


def _foreign(folder: Path) -> list[str]:
    """What lies in the folder and is none of the files that models consist of."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    names = sorted(path.relative_to(folder).as_posix() for path in found if _REPLACED not in path.parts)
    own = [*_OWN, *(pattern for layout in layouts() for pattern in layout.patterns)]
    return [name for name in names if not any(matches(name, pattern) for pattern in own)]


def _check_writable(destination: Path) -> None:
    folder = _existing(destination.parent)
    if not folder.is_dir():
        raise DestinationError(f"cannot write to {destination}: {folder} is not a folder", hint="choose another path")
    if not os.access(folder, os.W_OK | os.X_OK):
        hint = "choose a path that you may write to"
        raise DestinationError(f"cannot write to {destination}: {folder} is not writable", hint=hint)


def _existing(path: Path) -> Path:
    """The nearest of ``path`` and its parents that exists."""
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    return path


def free_space(destination: Path) -> int:
    """Bytes free on the disk that ``destination`` is, or would be, on."""
    return shutil.disk_usage(_existing(destination.parent)).free


def space_taken(destination: Path) -> int:
    """Bytes on the disk of an unfinished run's shards and calibrated layers: allocated ones, files may have holes."""
    folder = partial_folder(destination)
    if folder.is_symlink() or not folder.is_dir():
        return 0
    files = (*folder.glob("*.safetensors*"), *folder.glob("calibrated/*.safetensors"))
    return sum(path.lstat().st_blocks * 512 for path in files)


def check_space(destination: Path, needed: int, present: int = 0) -> int:
    """Bytes free at ``destination``; raises DiskError where ``needed`` minus what is ``present`` does not fit."""
    free = free_space(destination)
    if needed - present > free:
        raise DiskError(
            f"{destination} needs {(needed - present) / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB free",
            hint="free some space, choose another disk, or quantize to fewer bits",
        )
    return free


class Workspace:
    """The folder ``DST.partial`` under a lock, with the record of the shards that are done."""

    def __init__(self, destination: Path, folder: Path, state: dict[str, Any]) -> None:
        self.destination = destination
        self.folder = folder
        self._state = state

    @property
    def done(self) -> dict[str, Written]:
        """Finished shards by file name."""
        return {name: _written(entry) for name, entry in self._state["shards"].items()}

    def record(self, name: str, written: Written) -> None:
        """Remember a finished shard, durably."""
        self._state["shards"][name] = asdict(written)
        self._save()

    def forget(self, name: str) -> None:
        """Drop a shard whose bytes are not those that were recorded."""
        self._state["shards"].pop(name, None)
        (self.folder / name).unlink(missing_ok=True)
        self._save()

    def _save(self) -> None:
        replace_json(self.folder / _STATE, self._state)

    def publish(self, keep: set[str], overwrite: bool = False) -> None:
        """Rename the folder to its final name, replacing what is there; files not in ``keep`` are dropped first.

        Raises:
            DestinationError: The final name cannot be given, or was taken meanwhile; the finished folder stays.
        """
        for path in sorted(self.folder.rglob("*"), reverse=True):
            relative = str(path.relative_to(self.folder))
            if path.is_dir() and not path.is_symlink():
                if not any(path.iterdir()):
                    path.rmdir()
            elif relative in keep:
                sync(path)
            elif relative != _STATE:
                path.unlink()
        sync(self.folder)
        old = self.folder / _REPLACED
        _check_existing(self.destination, overwrite)
        try:
            if os.path.lexists(self.destination):
                os.rename(self.destination, old)
            os.rename(self.folder, self.destination)
        except OSError as error:
            _put_back(self.destination, self.folder)
            message = f"cannot rename {self.folder} to {self.destination}: {error.strerror}"
            raise DestinationError(message, hint="the first of the two is complete: rename it") from error
        sync(self.destination.parent)
        _finish(self.destination)


def _put_back(destination: Path, folder: Path) -> None:
    """Give what a run was about to replace its name again, where nothing took its place."""
    old = folder / _REPLACED
    if os.path.lexists(old) and not os.path.lexists(destination):
        os.rename(old, destination)


def _finish(destination: Path) -> None:
    """Drop what a conversion leaves in the published folder until it is certain that it is published."""
    if destination.is_symlink() or _made_for(destination) != destination.name:
        return  # none of ours, or one that is under way: its name is that of another destination's partial folder
    if (destination / _REPLACED).is_dir():
        shutil.rmtree(destination / _REPLACED)
    (destination / _STATE).unlink(missing_ok=True)


def _made_for(folder: Path) -> str | None:
    """The name of the destination that the state in ``folder`` is about, None where there is no such state."""
    try:
        name = read_object(folder / _STATE, SourceError)["destination"]
    except (SourceError, KeyError):
        return None
    return name if isinstance(name, str) else None


@contextlib.contextmanager
def open_workspace(
    destination: Path,
    fingerprint: Mapping[str, str],
    overwrite: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[Workspace]:
    """Create or resume ``DST.partial`` under an exclusive lock.

    A partial folder of another conversion (other source, options or version) is emptied; one that mlxport did not
    make is refused.

    Args:
        destination: The final name, absolute.
        fingerprint: What decides the bytes, as ``output.fingerprint`` makes it.
        overwrite: Whether a model folder may be replaced; what ``check_destination`` saw may have changed.
        say: Called with one line where an earlier run cannot be gone on with.

    Raises:
        DestinationError: Not writable, in use by another run, or not ours.
        DiskError: The disk is full.
    """
    folder = partial_folder(destination)
    with _errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        with _errors(folder):
            _lock(descriptor, folder, destination)
            _put_back(destination, folder)
            _check_existing(destination, overwrite)
            state = _resume(folder, fingerprint, say) | {"destination": destination.name}
            workspace = Workspace(destination, folder, state)
            workspace._save()
        yield workspace
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _errors(folder: Path) -> Iterator[None]:
    """Say which folder cannot be written, and why."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(folder) from error
        hint = "choose a path that you may write to"
        raise DestinationError(f"cannot write to {folder}: {error.strerror}", hint=hint) from error


def _lock(descriptor: int, folder: Path, destination: Path) -> None:
    """Lock the folder, and see that it is still the one of that name: the run before may just have published it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine, there = os.fstat(descriptor), os.lstat(folder)
    except (BlockingIOError, FileNotFoundError):
        pass
    else:
        if (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino):
            return
    raise DestinationError(f"another run is writing {destination} right now", hint="wait for it to end")


def _resume(folder: Path, fingerprint: Mapping[str, str], say: Callable[[str], None]) -> dict[str, Any]:
    """The state of an earlier run of the same conversion; otherwise an empty one, and the folder emptied."""
    entries = list(folder.iterdir())
    state_file = folder / _STATE
    if not state_file.is_file() and any(not entry.name.startswith(_STATE) for entry in entries):
        hint = "remove it, or choose another destination"
        raise DestinationError(f"{folder} exists and was not made by mlxport", hint=hint)
    try:
        known = json.loads(state_file.read_text(encoding="utf-8"))
        shards = {name: asdict(_written(entry)) for name, entry in known["shards"].items()}
        if known["fingerprint"] == fingerprint:
            return {"fingerprint": fingerprint, "shards": shards}
        say(f"starting anew: {other_parts(known['fingerprint'], fingerprint)} since the interrupted run")
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        say("starting anew: what the interrupted run noted of itself cannot be read")
    # The state goes last: a kill in between must not leave a folder that nobody can tell is ours.
    for entry in sorted(entries, key=lambda entry: entry.name.startswith(_STATE)):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    return {"fingerprint": dict(fingerprint), "shards": {}}


def _written(entry: dict[str, Any]) -> Written:
    return Written(str(entry["sha256"]), int(entry["nbytes"]), Findings(**entry["findings"]))
