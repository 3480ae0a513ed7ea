"""The run of a model on the calibration text, in which each block is quantized when it is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlxport.calibrate.calibrated_store import Store
from mlxport.calibrate.calibrated_units import Unit, find_units, hooked_classes
from mlxport.calibrate.moments import Experts, Moments, Power
from mlxport.calibrate.packed_matrices import Packed, Rows, beside, joined, prepared, quantize_columns, quantize_experts
from mlxport.calibrate.paired_batch import PairedBatch, arrays_in, make_batch
from mlxport.calibrate.sites import OFF, ORIGINAL, REHEARSAL, ROUNDED, Recorder
from mlxport.errors import NumericsError, UnsupportedError
from mlxport.model.both_texts import called_apart, has_encoder, written_size
from mlxport.model.hooks import swapped
from mlxport.model.lazy_parameters import LazyModel, parameters_of
from mlxport.model.leaf_calls import table_rows
from mlxport.model.tensors import Tensor, computed_tensors
from mlxport.quant import is_linear
from mlxport.quant.packing import quantize_rows
from mlxport.transform import Program, float32
from mlxport.types import QuantSpec

__all__ = ["calibrate", "column_power", "methods"]

_SEARCHED = "search"
_FED_BACK = "error feedback"


def calibrate(
    model: nn.Module,
    program: Program,
    quantized: Mapping[str, QuantSpec],
    tokens: mx.array,
    store: Store,
    *,
    most_shift: Callable[[QuantSpec], float] = lambda spec: inf,
    on_unit: Callable[[str, int], None] = lambda name, nbytes: None,
) -> None:
    """Quantize every matrix that the model uses on a text; what is finished in ``store`` already is not done again.

    Args:
        model: mlx-lm's, its parameters not evaluated; it is changed and cannot be used afterwards.
        program: Computes the weights under mlx-lm's names, not quantized.
        quantized: Module path to its quantization; modules of modes that are not linear stay as MLX quantizes them.
        tokens: int32 [sequences, length].
        store: Takes the packed weights.
        most_shift: How far a row may be moved to make up for shifted inputs, relative to its length.
        on_unit: Called with the path of each finished unit and the bytes of its weights.

    Raises:
        NumericsError: Activations are not finite, by layer.
        UnsupportedError: The architecture uses its weights in a way that cannot be followed.
    """
    specs = {path: spec for path, spec in quantized.items() if is_linear(spec.mode)}
    run = _Pass(model, computed_tensors(program), specs, Recorder(Moments), store, on_unit, most_shift)
    with run.hooked():
        run.rehearse(tokens)
        if any(unit.path not in store.units for unit in run.pending()):
            run.run(tokens)


def methods(quantized: Mapping[str, QuantSpec], store: Store) -> dict[str, dict[str, Any]]:
    """What was done for each quantized module, by path: the method; where it was measured, error and tokens too."""
    how = {path: _SEARCHED if is_linear(spec.mode) else f"MLX's {spec.mode}" for path, spec in quantized.items()}
    facts = store.facts()
    return {path: {"method": method, **facts.get(path, {})} for path, method in sorted(how.items())}


def column_power(model: nn.Module, program: Program, tokens: mx.array) -> dict[str, mx.array]:
    """Mean square of each input column of every matrix that the model uses on a text, by module path.

    What an error in a column costs, for choosing bits or scales; nothing is quantized. Arguments and errors are those
    of ``calibrate``; the paths are of linear layers, stacks of experts, and tied embeddings (as they are a head).

    Returns:
        Module path to float32 [columns].
    """
    run = _Pass(model, computed_tensors(program), {}, Recorder(Power), None)
    with run.hooked():
        run.rehearse(tokens)
        run.run(tokens)
    return run.power


@dataclass
class _Pass:
    """One run. ``store`` is None where statistics are all that is wanted."""

    model: Any
    tensors: Mapping[str, Tensor]
    specs: Mapping[str, QuantSpec]
    recorder: Recorder
    store: Store | None
    on_unit: Callable[[str, int], None] = lambda name, nbytes: None
    most_shift: Callable[[QuantSpec], float] = lambda spec: inf
    units: list[Unit] = field(default_factory=list)
    order: list[Unit] = field(default_factory=list)  # as they are called, with repetition
    power: dict[str, mx.array] = field(default_factory=dict)
    batch: PairedBatch = field(default_factory=lambda: PairedBatch(2, 1))

    def __post_init__(self) -> None:
        apart = called_apart(self.model, mx.zeros((1, 4), mx.int32)) if has_encoder(self.model) else ()
        self.units = find_units(self.model, self.recorder, apart)
        matrices = {f"{path}.weight" for unit in self.units for path in unit.sites}
        self.lazy = LazyModel(self.model, self.tensors, lambda name, x: x if name in matrices else float32(x))
        self.lazy.fill_outside(unit.path for unit in self.units)

    def hooked(self) -> AbstractContextManager[None]:
        """While it lasts, the model's calls are this run's."""
        return swapped(hooked_classes(self.units, self))

    def rehearse(self, tokens: mx.array) -> None:
        """Find which units are called, how often, and in which order; nothing is evaluated."""
        self.recorder.begin(REHEARSAL)
        self._forward(tokens[:2])
        for unit in self.units:
            unit.calls = sum(called is unit for called in self.order)
        last = self.order[-1] if self.order else None
        if last is not None and last.leaf and (last.table or last.calls == 1):
            last.head = True
        for unit in self.order:
            if unit.table and unit is not last:
                raise UnsupportedError(
                    f"this architecture goes on after {unit.path} was its head",
                    hint="use --quantizer search instead of --calibrate",
                )

    def pending(self) -> list[Unit]:
        """Units that are called and have something to quantize."""
        return [unit for unit in dict.fromkeys(self.order) if self._wanted(unit)]

    def _wanted(self, unit: Unit) -> list[str]:
        return [path for path in unit.sites if path in self.specs]

    def run(self, tokens: mx.array) -> None:
        """The forward pass over the whole batch."""
        sizes = {size for _, value in parameters_of(self.model) for size in value.shape}
        length = written_size(self.model, tokens.shape[1])
        self.batch = make_batch(tokens.shape[0], length, sizes, paired=self.store is not None)
        half = tokens[: self.batch.sequences]
        self.recorder.begin(OFF)
        self._forward(mx.concatenate([half, half]) if self.batch.paired else half)
        mx.clear_cache()

    def _forward(self, tokens: mx.array) -> None:
        """The model's own code on sequences without a cache: what it raises is about this model."""
        try:
            self.model(tokens)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise UnsupportedError(
                f"mlx-lm cannot run this model to calibrate it: {type(error).__name__}: "
                f"{' '.join(str(error).split())[:300]}",
                hint="use --quantizer search instead of --calibrate",
            ) from error

    # --- what the hooks of units call -------------------------------------------------------------------------------

    def enter(self, unit: Unit, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A unit is called with the whole batch."""
        if self.recorder.open is not None:
            raise UnsupportedError(
                f"this architecture calls {unit.path} within {self.recorder.open}",
                hint="use --quantizer search instead of --calibrate",
            )
        self.recorder.open = unit.path
        try:
            if self.recorder.mode == REHEARSAL:
                self.order.append(unit)
                return call(*args, **kwargs)
            unit.seen += 1
            if unit.head:
                return self._head(unit, args[0])
            self.lazy.fill(f"{unit.path}.")
            result = self._called(unit, call, (args, kwargs))
            self.lazy.release(f"{unit.path}.")
            return result
        finally:
            self.recorder.open = None

    def lookup(self, unit: Unit, ids: mx.array) -> mx.array:
        """Rows of a table of embeddings: of the original, and of what is stored where that is known already."""
        if self.recorder.mode == REHEARSAL:
            return mx.zeros((*ids.shape, self.tensors[f"{unit.path}.weight"].shape[-1]))
        name, spec = f"{unit.path}.weight", self.specs.get(unit.path)
        if spec is None or unit.calls or not self.batch.paired or self.batch.axis(ids) is None:
            return self._rows(name, ids, None)
        count = self.batch.sequences
        halves = [self.batch.cut(ids, 0, count), self.batch.cut(ids, count, 2 * count)]
        axis, _ = self.batch.axis(ids) or (0, 1)
        return mx.concatenate([self._rows(name, halves[0], None), self._rows(name, halves[1], spec)], axis=axis)

    def _rows(self, name: str, ids: mx.array, spec: QuantSpec | None) -> mx.array:
        """Rows by their numbers, each read once; with ``spec`` as the writer's search will store them."""
        table, places = table_rows(ids, lambda row: self.tensors[name].rows(row, row + 1))
        if spec is not None:
            table = _dequantized(quantize_rows(table, spec, "search"), spec)
        rows = table.astype(mx.float32)[places]
        mx.eval(rows)
        return rows

    def _head(self, unit: Unit, x: mx.array) -> mx.array:
        """The last matrix: it is measured and quantized, its outputs are not needed."""
        count, site = self.batch.sequences, unit.sites[unit.path]
        self._check(unit, x)
        for start, stop in self.batch.pieces() if self._collecting(unit) else ():
            self.recorder.begin(ORIGINAL if self.batch.paired else ROUNDED)
            site.see(self.batch.cut(x, start, stop))
            if self.batch.paired:
                self.recorder.begin(ROUNDED)
                site.see(self.batch.cut(x, count + start, count + stop))
            mx.eval(self.recorder.arrays())
        if unit.seen == unit.calls:
            self._finish(unit)
        rows = self.tensors[f"{unit.path}.weight"].shape[0]
        return mx.broadcast_to(mx.array(0.0), (*x.shape[:-1], rows))

    # --- one unit ---------------------------------------------------------------------------------------------------

    def _called(self, unit: Unit, call: Callable[..., Any], given: tuple[Any, Any]) -> Any:
        batch = self.batch
        final = unit.seen == unit.calls

        def piece(mode: str, span: tuple[int, int] | None, first: int = 0) -> Any:
            args, kwargs = given if span is None else batch.cut(given, first + span[0], first + span[1])
            self.recorder.begin(mode)
            result = call(*args, **kwargs)
            mx.eval(arrays_in(result), self.recorder.arrays())
            self._check(unit, result)
            return result

        collecting = self._collecting(unit)
        if not batch.splits(given) or not batch.paired:
            # Without an axis of sequences the halves cannot be told apart: both go on with the original's weights.
            spans = batch.pieces() if batch.splits(given) else [None]
            results = [piece(ROUNDED if collecting else OFF, span) for span in spans]
            if final:
                self._finish(unit)
            return batch.join(results)
        originals, others = [], []
        for span in batch.pieces():
            originals.append(piece(ORIGINAL if collecting else OFF, span))
            if collecting or not final:
                other = piece(ROUNDED if collecting else OFF, span, batch.sequences)
                others += [] if final else [other]
        if final:
            self._finish(unit)
            self._round(unit)
            others = [piece(OFF, span, batch.sequences) for span in batch.pieces()]
        return batch.join([*originals, *others])

    def _collecting(self, unit: Unit) -> bool:
        """Whether the inputs of a unit's matrices are to be measured."""
        return self.store is None or (bool(self._wanted(unit)) and unit.path not in self.store.units)

    def _check(self, unit: Unit, result: Any) -> None:
        for array in arrays_in(result)[:1]:
            if mx.issubdtype(array.dtype, mx.floating) and not mx.all(mx.isfinite(array)).item():
                bad = next((s.path for s in unit.sites.values() if not _finite(s.statistics)), None)
                where = f"{unit.path}: the input of {bad}" if bad else f"the output of {unit.path}"
                raise NumericsError(
                    f"activations are not finite (NaN or infinite) in {where}",
                    hint="look for NaN in its weights with mlxport inspect, or use --quantizer search",
                )

    def _finish(self, unit: Unit) -> None:
        """Quantize what a unit's statistics are for, or hand them out; then forget them."""
        nbytes = sum(value.nbytes for _, value in parameters_of(unit.module))
        if self.store is None:
            for path, site in unit.sites.items():
                if site.statistics is not None:
                    self.power[path] = site.statistics.power()
                    mx.eval(self.power[path])
        elif unit.path not in self.store.units and self._wanted(unit):
            for path in self._wanted(unit):
                unit.sites[path].drop()
            arrays, facts = self._quantize(unit)
            if arrays:
                self.store.save(unit.path, arrays, facts)
        for site in unit.sites.values():
            site.statistics, site.waiting = None, []
        mx.clear_cache()
        self.on_unit(unit.path, nbytes)

    def _quantize(self, unit: Unit) -> tuple[dict[str, mx.array], dict[str, dict[str, Any]]]:
        """All matrices of a unit, those that share statistics together."""
        arrays: dict[str, mx.array] = {}
        facts: dict[str, dict[str, Any]] = {}
        groups: dict[int, list[str]] = {}
        for path in self._wanted(unit):
            if unit.sites[path].statistics is not None:
                groups.setdefault(id(unit.sites[path].statistics), []).append(path)
        for paths in groups.values():
            statistics: Any = unit.sites[paths[0]].statistics
            try:
                for path, packed in self._quantize_group(paths, statistics, unit.table).items():
                    arrays |= _named(path, packed)
                    facts[path] = self._facts(path, packed, statistics)
            except ValueError as error:
                raise NumericsError(
                    f"activations are not finite (NaN or infinite): the input of {paths[0]}",
                    hint="look for NaN in the weights before it with mlxport inspect, or use --quantizer search",
                ) from error
        return arrays, facts

    def _quantize_group(self, paths: list[str], statistics: Moments | Experts, tied: bool) -> dict[str, Packed]:
        """Matrices that share their inputs; of each range of columns the moments are factored once."""

        def given(path: str) -> tuple[QuantSpec, mx.Dtype]:
            return self.specs[path], self.tensors[f"{path}.weight"].dtype

        def read(path: str) -> Rows:
            def rows(start: int, stop: int) -> mx.array:
                found = self.tensors[f"{path}.weight"].rows(start, stop)
                mx.eval(found)
                return found

            return rows

        shapes = {path: self.tensors[f"{path}.weight"].shape for path in paths}
        if isinstance(statistics, Experts):
            return {path: quantize_experts(read(path), shapes[path], statistics, *given(path)) for path in paths}
        parts: dict[str, list[Packed]] = {path: [] for path in paths}
        for ready in prepared(statistics, tied):
            for path in paths:
                most, rows = self.most_shift(self.specs[path]), shapes[path][0]
                parts[path].append(quantize_columns(read(path), rows, ready, *given(path), most_shift=most))
        return {path: joined(found, beside) for path, found in parts.items()}

    def _facts(self, path: str, packed: Packed, statistics: Moments | Experts) -> dict[str, Any]:
        """What was done for a matrix, and how well."""
        if not isfinite(packed.error):
            raise NumericsError(
                f"{path}.weight has values that are not finite (NaN or infinite)",
                hint="look for them with mlxport inspect, or use another --dtype if it is float16",
            )
        relative = (max(packed.error, 0.0) / packed.power) ** 0.5 if packed.power > 0 else 0.0
        facts = {"method": _FED_BACK, "error": round(relative, 6), "tokens": statistics.tokens}
        if isinstance(statistics, Experts):
            facts["least_tokens_of_an_expert"] = min(statistics.counts(self.tensors[f"{path}.weight"].shape[0]))
        return facts

    def _round(self, unit: Unit) -> None:
        """Give a unit's matrices the values that are stored for them."""
        finished = self.store.units.get(unit.path) if self.store is not None else None
        arrays = finished.arrays() if finished is not None else {}
        for path, site in unit.sites.items():
            triple = [arrays.get(f"{path}.{part}") for part in ("weight", "scales", "biases")]
            if path in self.specs and triple[0] is not None:
                site.module.weight = _dequantized(triple, self.specs[path])
                mx.eval(site.module.weight)


def _named(path: str, packed: Packed) -> dict[str, mx.array]:
    """What is stored of a matrix, by output name."""
    return {f"{path}.{part}": array for part, array in zip(("weight", "scales", "biases"), packed.arrays, strict=True)}


def _dequantized(triple: Any, spec: QuantSpec) -> mx.array:
    weight, scales, biases = triple
    return mx.dequantize(weight, scales, biases, group_size=spec.group_size, bits=spec.bits)


def _finite(statistics: Any) -> bool:
    return statistics is None or all(mx.all(mx.isfinite(array)).item() for array in statistics.arrays())
