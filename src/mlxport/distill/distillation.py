"""One distillation: choose the text and the way, train, and hand over the changed tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxport.distill.blockwise import Blockwise
from mlxport.distill.distill_memory import Memory, Way
from mlxport.distill.distill_settings import DistillReport, DistillSettings
from mlxport.distill.teacher_logits import Targets
from mlxport.distill.teacher_student import OriginalModel, QuantizedModel
from mlxport.distill.training_text import Texts, sequence_length
from mlxport.distill.whole import predict, predict_in_parts, train_whole
from mlxport.errors import UnsupportedError
from mlxport.layouts.conversion import TracedModel
from mlxport.model.both_texts import has_encoder, source_size, written_size
from mlxport.output.atomic_files import replace_arrays

__all__ = ["distill"]

_SEQUENCES = "sequences.safetensors"


def distill(
    folder: Path,
    model: TracedModel,
    config: Mapping[str, Any],
    settings: DistillSettings,
    work: Path,
    *,
    text: str | None = None,
    memory_limit: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[DistillReport, dict[str, mx.array]]:
    """Train scales, biases and norms of an output to what its original computes.

    Args:
        folder: The output: config, shards and tokenizer.
        model: The original.
        config: The output's configuration.
        settings: How.
        work: A folder for what an interrupted run goes on from.
        text: What to train on, beside what the model itself writes; where no model fits in memory whole, and so none
            writes, a built-in one by default.
        memory_limit: Bytes that models and training may take; default half of what is available.
        say: Called with a line for each step of the work.

    Returns:
        What was done, and the changed tensors as they are to be stored: none where nothing was better.

    Raises:
        UnsupportedError: The model does not fit in memory, and is not one row of blocks.
        TokenizerError: There is no tokenizer for the text, or the text is too short.
    """
    work.mkdir(exist_ok=True)
    dtype = _dtype(config)
    trust_remote_code = model.checkpoint.trust_remote_code
    original, quantized = OriginalModel(model, dtype), QuantizedModel(folder, dtype, trust_remote_code)
    length = sequence_length(settings, config)
    way = Memory(original, quantized, settings, length, memory_limit).way()
    if not way.whole and has_encoder(original.model):
        raise UnsupportedError(
            "--distill: the quantized model and what its training holds do not fit in memory, and one that reads with "
            "an encoder is trained whole",
            hint="leave out --distill, or convert on a machine with more memory",
        )
    say(f"distilling: {way}")
    if way.original_whole:
        original.fill()
    texts = Texts(folder, original.checkpoint, config, original.vocabulary, length, text, settings.seed)
    ids, source = _sequences(work, original, quantized, way, settings, texts)
    held_out = max(1, min(settings.held_out, ids.shape[0] // 4))
    if not way.whole:
        before, after, found = Blockwise(original, quantized, ids, held_out, settings, work, say).run()
        steps, ended = settings.steps, "each block"
    else:
        targets = Targets(work)
        predict(original, ids, targets) if way.original_whole else predict_in_parts(original, ids, targets, say)
        original.release()
        quantized.fill()
        state = work / "state.safetensors"
        fitted, parts = train_whole(
            quantized, ids, held_out, targets, settings, checkpoint=way.checkpoint, state=state, say=say
        )
        before, after, steps, ended = fitted.before, fitted.after, fitted.steps, fitted.ended
        found = {}
        if fitted.changes is not None:
            for part in parts:
                found |= part.stored(fitted.changes)
        mx.eval(found)
        quantized.release()
    tokens = (ids.shape[0] - held_out) * written_size(original.model, ids.shape[1])
    whole = "whole" if way.whole else "block by block"
    run = "whole" if way.original_whole else "block by block"
    modules = tuple(sorted({name.rpartition(".")[0] for name in found}))
    return DistillReport(steps, whole, run, before, after, tokens, source, ended, modules), found


def _dtype(config: Mapping[str, Any]) -> mx.Dtype:
    """What to compute in: the CPU is fastest, and every device most exact, in float32."""
    stored = config.get("torch_dtype") or config.get("dtype")
    return mx.bfloat16 if stored == "bfloat16" and mx.default_device() != mx.cpu else mx.float32


def _sequences(
    work: Path, original: OriginalModel, quantized: QuantizedModel, way: Way, settings: DistillSettings, text: Texts
) -> tuple[mx.array, str]:
    """The sequences, and where they are from; those of an interrupted run are used again."""
    path = work / _SEQUENCES
    if path.is_file():
        loaded: Any = mx.load(str(path), return_metadata=True)
        return loaded[0]["ids"], loaded[1]["source"]
    wanted = min(settings.sequences, settings.steps * settings.batch) + settings.held_out
    while wanted in original.sizes() or wanted in (text.length, source_size(text.length)):
        wanted -= 1  # the axis of the sequences is told by its size
    writer = original if way.original_whole else quantized if way.whole else None
    if writer is quantized:
        quantized.fill()
    by = "the original" if writer is original else "the quantized model"
    make = text.to_read_and_write if has_encoder(original.model) else text.to_write
    ids, source = make(None if writer is None else writer.model, wanted, by)
    ids = ids[mx.random.permutation(ids.shape[0], key=mx.random.key(settings.seed))]
    mx.eval(ids)
    replace_arrays(path, {"ids": ids}, {"source": source})
    return ids, source
