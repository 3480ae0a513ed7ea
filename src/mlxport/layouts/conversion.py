"""What a layout makes of a checkpoint: a traced map of weights with its config, before a byte of weights is read."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlxport.errors import QuantizationError
from mlxport.layouts.quantizing import Built, count_parameters, quantize, spell
from mlxport.quant import QuantRequest
from mlxport.transform import Pipeline, Program, derive, st_dtype, working_bytes
from mlxport.types import Checkpoint, ModelPart, OutTensor, QuantSpec

__all__ = ["DTYPES", "Conversion", "ModelSource", "TracedModel", "empty", "main_dtype", "make_conversion"]

DTYPES: Mapping[str, mx.Dtype] = {"float16": mx.float16, "bfloat16": mx.bfloat16, "float32": mx.float32}


@dataclass(frozen=True)
class Conversion:
    """What will be written of a checkpoint, in its layout.

    Attributes:
        program: From checkpoint tensors to output tensors.
        config: What to write as config.json.
        dtype: Name of the dtype of most floating output tensors.
        parameters: Count of parameters, as mlx-lm counts them.
        quantized: Module path to its quantization.
        kept: Module path to why it is not quantized (empty unless quantization was asked for).
        notes: What was changed in the config, and other remarks for the user.
        left_out: Parts of the checkpoint's model that are not in the output.
        model: The runtime's model that it was traced from, for what runs it (calibration, a limit, distillation …);
            None where the output is a program of its own.
        source_files: Name to text of the source that is written beside the weights.
        files_of: Whose tokenizer and other files are carried, where those are not the source's.
    """

    program: Program
    config: dict[str, Any]
    dtype: str
    parameters: int
    quantized: Mapping[str, QuantSpec]
    kept: Mapping[str, str]
    notes: tuple[str, ...]
    left_out: tuple[ModelPart, ...] = field(default=(), kw_only=True)
    model: TracedModel | None = field(default=None, repr=False, kw_only=True)
    source_files: Mapping[str, str] = field(default_factory=dict, repr=False, kw_only=True)
    files_of: Checkpoint | None = field(default=None, repr=False, kw_only=True)

    def tensors(self) -> tuple[OutTensor, ...]:
        """The output tensors, in the order of the files; the parts of a quantized tensor share their ``source``."""
        return tuple(
            OutTensor(
                name,
                st_dtype(output.dtype),
                output.shape,
                f"{name.rpartition('.')[0]}.weight" if output.part else name,
                output.part,
                output.quant,
            )
            for name, output in self.program.outputs.items()
        )

    def working_bytes(self) -> int:
        """What the largest block of rows works on while it is computed."""
        outputs, quantizer = self.program.outputs.values(), self.program.quantizer
        return max((working_bytes(o.value, o.quant, quantizer) for o in outputs if o.value), default=0)

    def write_files(self, folder: Path) -> set[str]:
        """Write what the layout adds beside weights and config, and give the names of the files."""
        for name, text in self.source_files.items():
            (folder / name).write_text(text, encoding="utf-8")
        return set(self.source_files)

    def finish_files(self, folder: Path) -> tuple[set[str], dict[str, Any]]:
        """Write what needs the finished, verified weights; names of the files, and what they add to config.json."""
        return set(), {}


def make_conversion(
    program: Program,
    built: Built,
    dtype: str,
    quant: QuantRequest | None,
    notes: list[str],
    final_config: Callable[[Built, str, bool], dict[str, Any]],
) -> Conversion:
    """What a traced pipeline amounts to.

    Args:
        program: The trace.
        built: What the pipeline left behind.
        dtype: What was asked for.
        quant: What was to be quantized, or None.
        notes: Remarks for the user.
        final_config: Makes config.json of what was built, the name of its dtype, and whether anything is quantized.

    Raises:
        QuantizationError: Nothing can be quantized as asked.
    """
    assert built.model is not None
    quantized = {
        path: QuantSpec(module.mode, module.bits, module.group_size)
        for path, module in built.model.named_modules()
        if hasattr(module, "bits") and hasattr(module, "group_size") and "scales" in module
    }
    if quant is not None and not quantized:
        reasons = sorted(set((built.kept or {}).values()))
        raise QuantizationError(
            f"nothing can be quantized with {spell(quant.spec)}: {'; '.join(reasons) or 'no module supports it'}",
            hint="choose a smaller group size, or convert without --quantize",
        )
    if quant is not None:
        program = replace(program, quantizer=quant.quantizer)
    main = main_dtype(program, dtype)
    if any(ref.dtype == "F64" for ref in program.refs.values()):
        notes.append("float64 tensors become float32: MLX has no float64 on the GPU")
    config = final_config(built, main, bool(quantized))
    return Conversion(program, config, main, built.parameters, quantized, built.kept or {}, tuple(notes))


def main_dtype(program: Program, asked: str) -> str:
    """Return the name of the dtype of most floating tensors, those of quantized ones only where there are no others."""
    floating = [output for output in program.outputs.values() if mx.issubdtype(output.dtype, mx.floating)]
    found = [o.dtype for o in floating if not o.part] or [o.dtype for o in floating]
    names = {value: name for name, value in DTYPES.items()}
    default = asked if asked in DTYPES else "float32"
    return names.get(max(set(found), key=found.count), "float32") if found else default


@dataclass(frozen=True)
class ModelSource:
    """How a runtime's model is made, for what goes on from its trace.

    Attributes:
        pipeline: From a request to the function that makes the output's arrays, and notes what else in ``Built``.
        notes: Remarks for the user.
        final_config: As of ``make_conversion``.
        blamed: Around the runtime's own code: what it raises becomes an error about the checkpoint.
        reopen: The model in another dtype.
        files: Name to text of the source that the model is built by, where it is not the runtime's own.
    """

    pipeline: Callable[[QuantRequest | None, Built], Pipeline]
    notes: tuple[str, ...]
    final_config: Callable[[Built, str, bool], dict[str, Any]]
    blamed: Callable[[], AbstractContextManager[None]]
    reopen: Callable[[str], TracedModel]
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TracedModel:
    """A runtime's model of a checkpoint in one dtype: run once on placeholders, and whatever follows from that.

    Attributes:
        checkpoint: The opened source.
        dtype: What was asked for, as of ``convert``.
        plain: The conversion that quantizes nothing.
        config: As the runtime loads it; ``plain.config`` is what is written.
        source: How it was made.
        pristine: The model itself, which nothing may change.
    """

    checkpoint: Checkpoint
    dtype: str
    plain: Conversion
    config: Mapping[str, Any]
    source: ModelSource = field(repr=False)
    pristine: nn.Module = field(repr=False)
    _by_dtype: dict[str, TracedModel] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "plain", self._made(self.plain))
        self._by_dtype[self.dtype] = self

    def skeleton(self) -> nn.Module:
        """A model of its own, for the caller to change; its parameters are zeros that nothing has evaluated."""
        model = copy.deepcopy(self.pristine)
        empty(model, self.plain.program)
        return model

    def conversion(self, quant: QuantRequest | None) -> Conversion:
        """How the checkpoint is converted, quantized as asked.

        A skeleton is quantized; what becomes of each parameter is read off, so nothing is loaded or traced again.

        Raises:
            QuantizationError: The setting cannot apply to this model.
        """
        if quant is None:
            return self.plain
        built = Built(dict(self.config), model=self.skeleton())
        assert built.model is not None
        before = dict(tree_flatten(built.model.parameters()))

        def quantized() -> dict[str, mx.array]:
            assert built.model is not None
            built.config = quantize(built.model, built.config, quant, built)
            built.parameters = count_parameters(built.model)
            return dict(tree_flatten(built.model.parameters()))

        with self.source.blamed():
            program = derive(self.plain.program, before, quantized, self.source.pipeline(quant, Built({})))
        made = make_conversion(program, built, self.dtype, quant, list(self.source.notes), self.source.final_config)
        return self._made(made)

    def _made(self, conversion: Conversion) -> Conversion:
        return replace(conversion, model=self, source_files=self.source.files)

    def at(self, dtype: str) -> TracedModel:
        """The same model in another dtype, traced when it is first asked for."""
        if dtype not in self._by_dtype:
            other = self.source.reopen(dtype)
            self._by_dtype[dtype] = replace(other, _by_dtype=self._by_dtype)
        return self._by_dtype[dtype]


def empty(model: nn.Module, program: Program) -> None:
    """Give every parameter zeros of its own, which take no memory until they are evaluated."""
    zeros = [(name, mx.zeros(output.shape, dtype=output.dtype)) for name, output in program.outputs.items()]
    model.update(tree_unflatten(zeros))
