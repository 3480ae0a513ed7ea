"""Open a converted folder for the task that it is for."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from mlxport.errors import UnsupportedError, UsageError
from mlxport.run.load import resolve
from mlxport.run.tasks.task_options import SPEECH_TASKS
from mlxport.run.tasks.task_table import TASKS, pipeline_class, task_command, task_of_folder

if TYPE_CHECKING:
    from mlxport.run.tasks.pipeline import Pipeline

__all__ = ["pipeline", "other_task"]


def pipeline(path: str | os.PathLike[str], task: str | None = None, *, trust_remote_code: bool = False) -> Pipeline:
    """A converted model, ready for the task that it is for.

    Args:
        path: A converted folder, or a repository on the hub that holds one.
        task: Another task than the one on record.
        trust_remote_code: Run source of the folder that this installation did not write.

    Raises:
        SourceError: No such folder, or not a converted model.
        UsageError: There is no such task, or the model is for another.
        UnsupportedError: Nothing says what the model is for.
        UnsafeError: It carries code that is not trusted.
    """
    if task is not None and task not in TASKS:
        raise _unknown(path, task)  # before anything is fetched
    folder = resolve(path)
    known = task_of_folder(folder)
    if task is not None and known is not None and task not in _served(known):
        raise other_task(os.fspath(path), task, known)
    found = task or known
    if found is None:
        raise UnsupportedError(
            f"{path}: nothing says what this model is for",
            hint=f"name it with --task, one of {', '.join(TASKS)}; "
            f"or call it from Python: mlxport.load({os.fspath(path)!r})(...)",
        )
    return pipeline_class(found)(folder, trust_remote_code=trust_remote_code)


def other_task(path: str, asked: str, known: str) -> UsageError:
    """What is said where a folder is asked for a task that its model is not for.

    Args:
        path: What the user calls the folder.
        asked: The task that was named.
        known: The one that the model is for.
    """
    return UsageError(
        f"--task {asked}: this model is for {known}",
        hint=f"leave --task out: {task_command(known, shlex.quote(path))}",
    )


def _served(known: str) -> list[str]:
    """Every task that a model for the task ``known`` can do, that one first."""
    return sorted((task for task in TASKS if known in (task, *pipeline_class(task).also_runs)), key=known.__ne__)


def _unknown(path: str | os.PathLike[str], task: str) -> UsageError:
    """What is said of a task that does not exist: those that do, and which of them a folder that is here can do."""
    known = task_of_folder(Path(path)) if (Path(path) / "config.json").is_file() else None
    tasks = [*TASKS, *SPEECH_TASKS]
    if known is None:
        return UsageError(f"--task {task!r} does not exist", hint=f"choose one of {', '.join(tasks)}")
    served = [*_served(known), *(SPEECH_TASKS if known == "automatic-speech-recognition" else ())]
    hint = f"{path} is for {' or '.join(served)}; all there are: {', '.join(tasks)}"
    return UsageError(f"--task {task!r} does not exist", hint=hint)
