"""The conversion that calibrates: quantized tensors are made by activations first, then written like any others."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from mlxport.calibrate.estimate import estimate
from mlxport.calibrate.passes import calibrate
from mlxport.calibrate.store import FOLDER, Store
from mlxport.calibrate.text import tokens_of
from mlxport.job import Job
from mlxport.options import Options
from mlxport.progress import Progress
from mlxport.target.mlx_lm import lazy_model, open_target
from mlxport.transform import Output, Program, Value, mx_dtype
from mlxport.types import CalibrationPlan, Checkpoint
from mlxport.workspace import Workspace

if TYPE_CHECKING:
    from mlxport.target.assemble import Conversion

__all__ = ["CalibratedJob", "prepare"]


def prepare(
    checkpoint: Checkpoint, conversion: Conversion, options: Options
) -> tuple[Callable[..., Job], CalibrationPlan]:
    """What makes the job, and what calibrating takes.

    Raises:
        TokenizerError: The checkpoint has no tokenizer that loads.
        UsageError: The text has too few tokens.
    """
    assert options.calibration is not None
    tokens = tokens_of(options.calibration, checkpoint, trust_remote_code=options.trust_remote_code)
    plan = estimate(options.calibration, tokens, conversion.program, conversion.quantized, conversion.config)
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
            model, plain, self.conversion.quantized, self.tokens, store,
            on_unit=lambda _, nbytes: progress.advance(nbytes),
        )  # fmt: skip
        progress.stage(f"converting {self.checkpoint.name}", self.plan.nbytes)
        return _with_calibrated(self.conversion.program, store)

    def _own_record(self, folder: Path) -> dict[str, Any]:
        """The text, and what was done for each module."""
        calibration, plan = self.options.calibration, self.plan.calibration
        assert calibration is not None and plan is not None
        facts = {path: {"method": "search"} for path in self.conversion.quantized}
        return {
            "calibration": {
                **calibration.recorded(),
                "tokens": plan.tokens,
                "sequences": plan.sequences,
                "modules": {**facts, **Store(folder / FOLDER).facts()},
            }
        }


def _with_calibrated(program: Program, store: Store) -> Program:
    """``program`` with the outputs of finished units as plain copies of what the store holds."""
    outputs = dict(program.outputs)
    for name, ref in store.refs().items():
        value = Value(ref.shape, mx_dtype(ref), leaf=ref)
        outputs[name] = Output(name, ref.shape, mx_dtype(ref), value)
    return replace(program, outputs=outputs)
