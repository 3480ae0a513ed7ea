"""The step that calibrates: quantized tensors are made by activations first, then written like any others."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from mlxport.calibrate.calibrated_store import FOLDER, TOKENS, Store
from mlxport.calibrate.calibration_text import SELF, Calibration, spread, tokens_of, written
from mlxport.calibrate.estimate import estimate
from mlxport.calibrate.passes import calibrate, methods
from mlxport.errors import UnsupportedError
from mlxport.model.both_texts import beginnings, called_with_both, copied, first_written, has_encoder
from mlxport.model.lazy_parameters import LazyModel, wide_on_cpu
from mlxport.model.self_written import write_sequences
from mlxport.model.tensors import computed_tensors
from mlxport.model.tokens import first_tokens
from mlxport.progress import Progress
from mlxport.quant.modes import level
from mlxport.quant.tolerances import STORED_WEIGHT_BOUND, level_name
from mlxport.transform import Output, Program, Value, mx_dtype
from mlxport.types import CalibrationPlan, Checkpoint, QuantSpec

if TYPE_CHECKING:
    from mlxport.layouts.conversion import Conversion, TracedModel

__all__ = ["Calibrating", "calibrated", "prepare"]

_WRITING_SEED = 20
_MOST_MEMORY = 0.7  # of the machine's, for a model that writes its text


@dataclass(frozen=True)
class Calibrating:
    """What the step works on, and what it takes.

    Attributes:
        tokens: Of the text, int32 [sequences, length].
        count: Sequences that the model writes itself.
        plan: What calibrating takes.
    """

    tokens: mx.array
    count: int
    plan: CalibrationPlan


def prepare(checkpoint: Checkpoint, conversion: Conversion, calibration: Calibration) -> Calibrating:
    """Read the text, and estimate.

    Raises:
        TokenizerError: The checkpoint has no tokenizer that loads.
        UsageError: The text has too few tokens.
        UnsupportedError: The model is to write the text, and does not fit in memory.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if calibration.name == SELF and checkpoint.nbytes > _MOST_MEMORY * memory:
        raise UnsupportedError(
            f"--calibrate self: to write a text, the whole model must be in memory: it has "
            f"{checkpoint.nbytes / 1e9:.1f} GB, this machine {memory / 1e9:.1f} GB",
            hint="use --calibrate default, or a text that suits the model",
        )
    tokens = tokens_of(calibration, checkpoint)
    count = written(calibration, checkpoint, tokens.shape[0])
    if conversion.model is not None and has_encoder(conversion.model.pristine):
        even = tokens[:, : tokens.shape[1] // 2 * 2]  # halves of one length: what is read, and what is written of it
        tokens, count = copied(even, first_written(checkpoint)), tokens.shape[0] if count else 0
    read = (tokens.shape[0], tokens.shape[1])
    plan = estimate(calibration, read, count, conversion.program, conversion.quantized, conversion.config)
    return Calibrating(tokens, count, plan)


def calibrated(
    work: Calibrating, calibration: Calibration, conversion: Conversion, folder: Path, progress: Progress
) -> tuple[Program, dict[str, Any]]:
    """Calibrate what is not finished yet.

    Args:
        work: What ``prepare`` made.
        calibration: The text that was asked for.
        conversion: What is to be written.
        folder: Of the open workspace.
        progress: What to report to.

    Returns:
        The conversion's program, its calibrated outputs read from the workspace; and what to record: the text, and what
        was done for each module.
    """
    assert conversion.model is not None
    store = Store(folder / FOLDER)
    if store.resumed:
        progress.message(f"resumed: {len(store.resumed)} calibrated layers were finished already")
    progress.stage("calibrating", conversion.model.checkpoint.nbytes)
    plain = conversion.model.plain.program
    tokens = _tokens(work, conversion.model, store, progress)
    calibrate(
        called_with_both(conversion.model.skeleton()), plain, conversion.quantized, tokens, store,
        most_shift=_most_shift, on_unit=lambda _, nbytes: progress.advance(nbytes),
    )  # fmt: skip
    record = {
        **calibration.recorded(),
        "tokens": work.plan.tokens,
        "sequences": work.plan.sequences,
        "written_sequences": work.count if (folder / FOLDER / TOKENS).is_file() else 0,
        "modules": methods(conversion.quantized, Store(folder / FOLDER)),
    }
    return _with_calibrated(conversion.program, store), {"calibration": record}


def _most_shift(spec: QuantSpec) -> float:
    """Half of what verification lets a stored row differ from the original."""
    return STORED_WEIGHT_BOUND[level_name(level(spec.mode, spec.bits))] / 2


def _tokens(work: Calibrating, model: TracedModel, store: Store, progress: Progress) -> mx.array:
    """Of the text, and those that the model writes itself, once."""
    count, tokens = work.count, work.tokens
    if not count:
        return tokens
    if not (store.folder / TOKENS).is_file():
        progress.message(f"writing {count} of {tokens.shape[0]} sequences to calibrate on")
        writer = LazyModel(model.skeleton(), computed_tensors(model.plain.program), wide_on_cpu)
        config = model.checkpoint.model_config
        if has_encoder(model.pristine):
            first = beginnings(tokens, first_written(model.checkpoint))
        else:
            first = first_tokens(config, config.vocabulary, count, lambda: tokens[:count, 0])
        key, hint = mx.random.key(_WRITING_SEED), "calibrate on a text: --calibrate FILE"
        try:
            wrote = write_sequences(writer, first, tokens.shape[1], key, hint)
        except UnsupportedError as error:
            if count == tokens.shape[0]:  # nothing but its own was asked for
                raise
            progress.message(f"calibrating on the text alone: {error.message}")
            return tokens
        sequences = tokens.shape[0]
        read = tokens[mx.array(spread(sequences, sequences - count), dtype=mx.int32)]
        store.save_tokens(mx.concatenate([wrote, read]))
        del writer
        mx.clear_cache()
    return store.tokens()


def _with_calibrated(program: Program, store: Store) -> Program:
    """``program`` with the outputs of finished units as plain copies of what the store holds."""
    outputs = dict(program.outputs)
    for name, ref in store.refs().items():
        value = Value(ref.shape, mx_dtype(ref), leaf=ref)
        outputs[name] = Output(name, ref.shape, mx_dtype(ref), value)
    return replace(program, outputs=outputs)
