"""Open a converted folder for the task that it is for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mlxport.errors import UnsupportedError
from mlxport.run.load import resolve
from mlxport.run.tasks.task_table import TASKS, pipeline_class, task_of_folder

if TYPE_CHECKING:
    from mlxport.run.tasks.pipeline import Pipeline

__all__ = ["pipeline"]


def pipeline(path: str | os.PathLike[str], task: str | None = None, *, trust_remote_code: bool = False) -> Pipeline:
    """A converted model, ready for the task that it is for.

    Args:
        path: A converted folder, or a repository on the hub that holds one.
        task: Another task than the one on record.
        trust_remote_code: Run source of the folder that this installation did not write.

    Raises:
        SourceError: No such folder, or not a converted model.
        UsageError: There is no such task.
        UnsupportedError: Nothing says what the model is for.
        UnsafeError: It carries code that is not trusted.
    """
    if task is not None:
        pipeline_class(task)  # refused before anything is fetched
    folder = resolve(path)
    found = task or task_of_folder(folder)
    if found is None:
        raise UnsupportedError(
            f"{path}: nothing says what this model is for",
            hint=f"name it with --task, one of {', '.join(TASKS)}; "
            f"or call it from Python: mlxport.load({os.fspath(path)!r})(...)",
        )
    return pipeline_class(found)(folder, trust_remote_code=trust_remote_code)
