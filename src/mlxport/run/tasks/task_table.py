"""The tasks, and which of them a folder is for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxport.errors import SourceError, UsageError
from mlxport.layouts.base import Layout
from mlxport.layouts.table import layout_of
from mlxport.model_config import ModelConfig
from mlxport.output.record import read_record
from mlxport.source.jsonfile import read_object
from mlxport.source.processor_files import PROCESSORS
from mlxport.source.sentence_folder import gives_vectors

if TYPE_CHECKING:
    from mlxport.run.tasks.pipeline import Pipeline

__all__ = ["TASKS", "find_task", "needs_text", "pipeline_class", "task_command", "task_of_folder", "task_usage"]

# Each with the table of transformers that names the classes of models for it; none where the layout says it, or files.
_CLASSES: Mapping[str, str] = {
    "text-generation": "",
    "text2text-generation": "",
    "text-classification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "token-classification": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "fill-mask": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "zero-shot-image-classification": "",
    "image-classification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "image-text-to-text": "",
    "automatic-speech-recognition": "MODEL_FOR_CTC_MAPPING_NAMES",
    "audio-to-audio": "",
    "sentence-similarity": "",
    "text-to-image": "",
    "feature-extraction": "MODEL_MAPPING_NAMES",
}
TASKS = tuple(_CLASSES)
_VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "tokenizer_config.json",
)
_GIVEN = {"picture": "picture.jpg", "sound": "talk.wav"}
"""An input by what a task reads; others read a text."""


def pipeline_class(task: str) -> type[Pipeline]:
    """What runs a task.

    Raises:
        UsageError: There is none of this name.
    """
    if task not in TASKS:
        raise UsageError(f"--task {task!r} does not exist", hint=f"choose one of {', '.join(TASKS)}")
    module = importlib.import_module(f"mlxport.run.tasks.{task.replace('-', '_')}")
    return module.PIPELINE  # type: ignore[no-any-return]


def needs_text(task: str) -> bool:
    """Whether a task reads or writes texts, so that it wants a tokenizer."""
    return pipeline_class(task).tokenizes


def find_task(folder: Path, config: Mapping[str, Any], layout: Layout) -> str | None:
    """What a model is for: by its layout, else by its class and the files beside it; None where nothing says.

    Args:
        folder: Of the original or of what was made of it.
        config: Its config.json.
        layout: What it was, or is to be, laid out for.
    """
    if task := layout.task_of(config):
        return task
    names = ModelConfig(config).architectures
    if not names:
        return None
    if gives_vectors(folder):
        return "sentence-similarity"
    for task, table in _CLASSES.items():
        if table and _names(table, names[0], str(config.get("model_type"))):
            return task if task != "feature-extraction" or _reads_text(folder) else None
    return None


def _names(table: str, name: str, model_type: str) -> bool:
    from transformers.models.auto import modeling_auto

    known = getattr(modeling_auto, table).get(model_type, ())
    return name == known or (not isinstance(known, str) and name in known)


def _reads_text(folder: Path) -> bool:
    words, others = (any((folder / name).is_file() for name in names) for names in (_VOCABULARIES, PROCESSORS))
    return words and not others


def task_command(task: str, folder: str) -> str:
    """The command that runs a task, on an input of its kind.

    Args:
        task: Its name.
        folder: What to call the folder.
    """
    kind = pipeline_class(task)
    return " ".join(filter(None, ["mlxport run", folder, _GIVEN.get(kind.reads, '"a text"'), kind.also]))


def task_usage(task: str) -> str:
    """A model card's lines on how a model does its task."""
    kind = pipeline_class(task)
    given = _GIVEN.get(kind.reads, '"a text"')
    said = given if given.startswith('"') else f'"{given}"'
    return f"""\
## {task}

```bash
{task_command(task, "PATH")}
```

From Python: `mlxport.pipeline("PATH")({said}{kind.also_in_python})` returns {kind.returns}. `--json` prints it.

"""


def task_of_folder(folder: Path) -> str | None:
    """What a converted folder is for: by its record, else as ``find_task`` sees it."""
    record = read_record(folder)
    recorded = record.get("task")
    if isinstance(recorded, str) and recorded in TASKS:
        return recorded
    config = read_object(folder / "config.json", SourceError, unique=False)
    return find_task(folder, config, layout_of(config, record))
