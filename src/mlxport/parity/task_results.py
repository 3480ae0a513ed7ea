"""The result of a task, text or label or vector, against what transformers' pipeline says of the original."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mlxport.errors import MlxportError, SourceError, UnsupportedError, UsageError
from mlxport.model.memory import refuse_large
from mlxport.parity.codec_reference import original_codec
from mlxport.parity.diffusion_reference import original_pipeline
from mlxport.parity.task_report import TaskParity
from mlxport.run.tasks.pipeline import Difference, Pipeline
from mlxport.run.tasks.task_table import pipeline_class
from mlxport.source.open_clip_config import is_open_clip, picture_processor_of
from mlxport.source.timm_config import is_timm
from mlxport.source.tokenizer_loading import load_tokenizer, reason, refusing
from mlxport.types import Checkpoint

__all__ = ["compare_task"]


class _NotComparedError(Exception):
    """The comparison cannot be made, and says why."""


def compare_task(
    task: str, folder: Path, checkpoint: Checkpoint, *, parameters: int, exact: bool, trust_remote_code: bool = False
) -> TaskParity:
    """Run the output, and the original through transformers' pipeline, on the same inputs.

    Args:
        task: Its name.
        folder: The output.
        checkpoint: The original.
        parameters: Of the original; it is loaded in float32, as a whole.
        exact: Whether the output is float32 and unquantized, so that the results must be equal.
        trust_remote_code: Run source of the folder that this installation did not write.
    """
    try:
        refuse_large(4 * parameters, "the original's {} run in memory")
    except UnsupportedError as error:
        return TaskParity(task, missing=error.message)
    try:
        ours = _opened(task, folder, trust_remote_code)
        examples = ours.examples()
        if not examples:
            raise _NotComparedError("its tokens were, above")
        theirs = _reference(task, checkpoint, ours)
        differences = [_compared(ours, theirs, example) for example in examples]
    except _NotComparedError as error:
        return TaskParity(task, missing=str(error))
    worst = max(differences, key=lambda item: (bool(item.wrong), item.error))
    return TaskParity(task, len(examples), worst.what, worst.error, worst.wrong, exact)


def _compared(ours: Pipeline, theirs: Callable[[Any], Any], example: Any) -> Difference:
    wanted = theirs(example)
    try:
        return ours.compare(ours.answer(example), wanted)
    except UsageError as error:  # it refuses what the original takes
        return Difference("results", 0.0, error.message)


def _opened(task: str, folder: Path, trust_remote_code: bool) -> Pipeline:
    """The output as its user opens it; what the original lacks, it lacks too."""
    try:
        return pipeline_class(task)(folder, trust_remote_code=trust_remote_code)
    except (SourceError, UsageError) as error:
        raise _NotComparedError(error.message) from error


def _reference(task: str, checkpoint: Checkpoint, ours: Pipeline) -> Callable[[Any], Any]:
    """The original's result for an example."""

    def failed(error: BaseException) -> MlxportError:
        return _OriginalFailsError(f"transformers' pipeline fails: {reason(error)}")

    def guarded(call: Callable[[], Any]) -> Any:
        try:
            with refusing(failed), _without_bars():
                return call()
        except _OriginalFailsError as error:
            raise _NotComparedError(error.message) from error

    if task == "sentence-similarity":
        model = guarded(lambda: _sentence_model(checkpoint))
        return lambda text: guarded(lambda: model.encode(text).tolist())
    if task == "audio-to-audio":
        original = guarded(lambda: original_codec(checkpoint))
        return lambda example: guarded(lambda: original(example))
    if task == "text-to-image":
        drawn = guarded(lambda: original_pipeline(checkpoint))
        return lambda example: guarded(lambda: drawn(example))
    pipe = guarded(lambda: _transformers_pipeline(task, checkpoint, ours.reads))
    return lambda example: guarded(lambda: ours.reference(pipe, example))


def _transformers_pipeline(task: str, checkpoint: Checkpoint, reads: str) -> Any:
    import transformers

    folder, given = str(checkpoint.root), dict[str, Any]()
    if is_open_clip(checkpoint.root):
        given = {
            "image_processor": transformers.CLIPImageProcessorPil(**picture_processor_of(checkpoint.root)),
            "tokenizer": load_tokenizer(checkpoint.root),
        }
    elif reads == "picture":  # with Pillow, as ours are prepared: torchvision, where it is installed, rounds otherwise
        given["image_processor"] = transformers.AutoImageProcessor.from_pretrained(
            folder, backend="pil", trust_remote_code=False, local_files_only=True
        )
    model = _built(checkpoint)
    return transformers.pipeline(
        task, model=folder if model is None else model, device="cpu", dtype="float32",
        trust_remote_code=checkpoint.trust_remote_code, **given,
    )  # fmt: skip


def _built(checkpoint: Checkpoint) -> Any:
    """The model of a folder that transformers' pipelines cannot open as it is; None of others."""
    import transformers

    from mlxport.layouts.generated.hf_model import empty_model, read_config

    if is_open_clip(checkpoint.root):
        import torch

        from mlxport.parity.lazy_reference import lazy_parameters

        return lazy_parameters(empty_model(checkpoint, dtype=torch.float32, attention="eager"), checkpoint)
    if not is_timm(checkpoint.config):
        return None
    # By the config as ``read_config`` mends it: pipelines read it again, as it is.
    return transformers.AutoModelForImageClassification.from_pretrained(
        str(checkpoint.root),
        config=read_config(checkpoint),
        dtype="float32",
        trust_remote_code=False,
        local_files_only=True,
    )


def _sentence_model(checkpoint: Checkpoint) -> Any:
    if importlib.util.find_spec("sentence_transformers") is None:
        raise _OriginalFailsError("sentence-transformers is not installed")
    from sentence_transformers import SentenceTransformer

    trust = checkpoint.trust_remote_code
    model = SentenceTransformer(str(checkpoint.root), device="cpu", local_files_only=True, trust_remote_code=trust)
    return model.float()


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Transformers shows how weights load; here that is nobody's business."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


class _OriginalFailsError(MlxportError):
    """Others' code failed on the original."""
