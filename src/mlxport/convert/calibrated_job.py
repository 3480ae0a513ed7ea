"""The conversion that calibrates: quantized tensors are made by activations first, then written like any others."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from mlxport.calibrate.calibrated_store import FOLDER, TOKENS, Store
from mlxport.calibrate.calibration_text import SELF, spread, tokens_of, written
from mlxport.calibrate.estimate import estimate
from mlxport.calibrate.passes import calibrate, methods
from mlxport.convert.job import Job
from mlxport.convert.resolved_options import ResolvedOptions
from mlxport.errors import UnsupportedError
from mlxport.layouts.mlx_lm.opening import lazy_model, open_target
from mlxport.model.parameters import LazyModel, wide_on_cpu
from mlxport.model.self_written import write_sequences
from mlxport.model.tensors import computed_tensors
from mlxport.model.tokens import first_tokens
from mlxport.output.workspace import Workspace
from mlxport.progress import Progress
from mlxport.transform import Output, Program, Value, mx_dtype
from mlxport.types import CalibrationPlan, Checkpoint

if TYPE_CHECKING:
    from mlxport.layouts.assembly import Conversion

__all__ = ["CalibratedJob", "prepare"]

_WRITING_SEED = 20
_MOST_MEMORY = 0.7  # of the machine's, for a model that writes its text


def prepare(
    checkpoint: Checkpoint, conversion: Conversion, options: ResolvedOptions
) -> tuple[Callable[..., Job], CalibrationPlan]:
    """What makes the job, and what calibrating takes.

    Raises:
        TokenizerError: The checkpoint has no tokenizer that loads.
        UsageError: The text has too few tokens.
        UnsupportedError: The model is to write the text, and does not fit in memory.
    """
    assert options.calibration is not None
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if options.calibration.name == SELF and checkpoint.nbytes > _MOST_MEMORY * memory:
        raise UnsupportedError(
            f"--calibrate self: to write a text, the whole model must be in memory: it has "
            f"{checkpoint.nbytes / 1e9:.1f} GB, this machine {memory / 1e9:.1f} GB",
            hint="use --calibrate default, or a text that suits the model",
        )
    tokens = tokens_of(options.calibration, checkpoint, trust_remote_code=options.trust_remote_code)
    writes = written(options.calibration, checkpoint, tokens.shape[0])
    read = (tokens.shape[0], tokens.shape[1])
    plan = estimate(options.calibration, read, writes, conversion.program, conversion.quantized, conversion.config)
    return functools.partial(CalibratedJob, tokens=tokens), plan


@dataclass(frozen=True)
class CalibratedJob(Job):
    """One calibrated conversion into an open workspace.

    Attributes:
        tokens: Of the text, int32 [sequences, length].
    """

    tokens: mx.array = field(kw_only=True)

    def _program(self, workspace: Workspace, progress: Progress) -> Program:
        """The conversion's program, its calibrated outputs read from the workspace."""
        store = Store(workspace.folder / FOLDER)
        if store.resumed:
            progress.message(f"resumed: {len(store.resumed)} calibrated layers were finished already")
        progress.stage("calibrating", self.checkpoint.nbytes)
        model, _ = lazy_model(self.checkpoint, self.options.dtype)
        plain = open_target(self.checkpoint, dtype=self.options.dtype).program
        calibrate(
            model, plain, self.conversion.quantized, self._tokens(plain, store, progress), store,
            on_unit=lambda _, nbytes: progress.advance(nbytes),
        )  # fmt: skip
        progress.stage(f"converting {self.checkpoint.name}", self.plan.nbytes)
        return _with_calibrated(self.conversion.program, store)

    def _tokens(self, plain: Program, store: Store, progress: Progress) -> mx.array:
        """Of the text, and those that the model writes itself, once."""
        count = self._written()
        if not count:
            return self.tokens
        if not (store.folder / TOKENS).is_file():
            progress.message(f"writing {count} of {self.tokens.shape[0]} sequences to calibrate on")
            model, _ = lazy_model(self.checkpoint, self.options.dtype)
            writer = LazyModel(model, computed_tensors(plain), wide_on_cpu)
            config, length = self.checkpoint.model_config, self.tokens.shape[1]
            first = first_tokens(config, config.vocabulary, count, lambda: self.tokens[:count, 0])
            key, hint = mx.random.key(_WRITING_SEED), "calibrate on a text: --calibrate FILE"
            try:
                wrote = write_sequences(writer, first, length, key, hint)
            except UnsupportedError as error:
                if count == self.tokens.shape[0]:  # nothing but its own was asked for
                    raise
                progress.message(f"calibrating on the text alone: {error.message}")
                return self.tokens
            sequences = self.tokens.shape[0]
            read = self.tokens[mx.array(spread(sequences, sequences - count), dtype=mx.int32)]
            store.save_tokens(mx.concatenate([wrote, read]))
            del model, writer
            mx.clear_cache()
        return store.tokens()

    def _written(self) -> int:
        """Sequences that the model writes itself."""
        assert self.options.calibration is not None
        return written(self.options.calibration, self.checkpoint, self.tokens.shape[0])

    def _own_record(self, folder: Path) -> dict[str, Any]:
        """The text, and what was done for each module."""
        calibration, plan = self.options.calibration, self.plan.calibration
        assert calibration is not None and plan is not None
        return {
            "calibration": {
                **calibration.recorded(),
                "tokens": plan.tokens,
                "sequences": plan.sequences,
                "written_sequences": self._written() if (folder / FOLDER / TOKENS).is_file() else 0,
                "modules": methods(self.conversion.quantized, Store(folder / FOLDER)),
            }
        }


def _with_calibrated(program: Program, store: Store) -> Program:
    """``program`` with the outputs of finished units as plain copies of what the store holds."""
    outputs = dict(program.outputs)
    for name, ref in store.refs().items():
        value = Value(ref.shape, mx_dtype(ref), leaf=ref)
        outputs[name] = Output(name, ref.shape, mx_dtype(ref), value)
    return replace(program, outputs=outputs)
