"""From a limit to a recipe: open, count, measure, solve, count again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from mlxport.allocation.budget import Budget, make_budget, tensor_bytes
from mlxport.allocation.candidates import Candidate, find_candidates, not_running, reachable
from mlxport.allocation.damage import Batch, Measurement, damages, measure_divergence, weight_errors
from mlxport.allocation.probe import Calls
from mlxport.allocation.report import AllocationReport, Choice, recipe_text
from mlxport.allocation.target import Target
from mlxport.allocation.tokens import Tokens, make_tokens
from mlxport.allocation.weights import Weights
from mlxport.errors import MlxportError, QuantizationError
from mlxport.fit import planned_dtype
from mlxport.inspection import context_length
from mlxport.progress import Progress
from mlxport.quant import QuantRequest, parse_recipe
from mlxport.quant.allocate import Allocation, Option, allocate
from mlxport.target.assemble import Conversion, check_unquantized
from mlxport.target.mlx_lm import lazy_model, open_target
from mlxport.tokenizer_files import embedding_rows
from mlxport.transform import Evaluator, Program, lazy_outputs
from mlxport.types import Checkpoint, QuantSpec

__all__ = ["Found", "find_allocation", "prepare"]

# Settings of each module that are measured, on how many tokens, where that takes at most so many operations; at
# least the last. A module's others follow from the measured ones, and 64 tokens rank modules nearly as 2,048 do.
_LEVELS = ((3, 512, 1e11), (1, 512, 1e12), (1, 256, 1e12), (1, 128, 1e12), (1, 64, math.inf))
_LENGTH = 256
_PART_BYTES = 768 << 20  # of the widest activations of all parts of a batch, and of copies of them
_COPIES = 3
_STRIDES = (1, 2, 4)
_MOST_PARTS = 65
_ROUTED = 8  # experts of a token, where work is estimated
_ROUNDS = 8
_NEAR = 1e-4  # of the limit: what else would fit in is not worth another count


@dataclass(frozen=True)
class Found:
    """A choice of settings.

    Attributes:
        request: What to quantize; None where everything fits as it is.
        report: What was chosen, and why.
        dtype: Of what is not quantized, as of ``convert``.
    """

    request: QuantRequest | None
    report: AllocationReport
    dtype: str


@dataclass(frozen=True)
class _Search:
    """What the search works on."""

    checkpoint: Checkpoint
    target: Target
    dtype: str
    conversion: Conversion
    budget: Budget
    candidates: Mapping[str, Candidate]

    def output(self, chosen: Mapping[str, QuantSpec | None]) -> tuple[Conversion, QuantRequest | None]:
        """The conversion with these settings, as ``convert`` makes it."""
        if not any(chosen.values()):
            return self.conversion, None
        text = recipe_text(chosen, self.budget.target, self.target.quantizer)
        request = parse_recipe(text, Path("recipe.toml"), self.target.quantizer)
        return open_target(self.checkpoint, dtype=self.dtype, quant=request), request

    def nbytes(self, chosen: Mapping[str, QuantSpec | None]) -> int:
        """Bytes of the candidates under these settings."""
        return sum(self.candidates[path].nbytes(spec) for path, spec in chosen.items())


def find_allocation(
    checkpoint: Checkpoint,
    target: Target,
    *,
    dtype: str,
    max_shard_size: str | int,
    shard_by: str,
    progress: Progress,
    tokens: Tokens | None = None,
) -> Found:
    """Choose bits and group size of every module such that the predicted damage is least within the limit.

    Reads weights in blocks, and never holds more than one module's.

    Args:
        checkpoint: The opened source.
        target: The limit.
        dtype: As of ``convert``; for a machine, ``auto`` makes float32 checkpoints bfloat16, as ``plan`` does.
        max_shard_size: As of ``convert``; headers count.
        shard_by: As of ``convert``.
        progress: What to report to.
        tokens: What damage is measured on, instead of what the model writes by itself.

    Raises:
        QuantizationError: Nothing is small enough (says the least possible), or the checkpoint is quantized already.
        UnsupportedError: mlx-lm cannot run the model here.
        UsageError: A context that the model was not made for.
    """
    conversion = open_target(checkpoint, dtype=dtype)
    asked = planned_dtype(dtype, conversion) if target.machine is not None else dtype
    notes: tuple[str, ...] = ()
    if asked != dtype:
        notes = (f"the checkpoint holds {conversion.dtype}: converted with --dtype {asked} to fit",)
        conversion = open_target(checkpoint, dtype=asked)
    model, _ = lazy_model(checkpoint, asked)
    check_unquantized(model)
    budget = make_budget(target, checkpoint, model, conversion, max_shard_size, shard_by)
    model, _ = lazy_model(checkpoint, asked)  # one of its own: measuring makes it float32
    candidates = find_candidates(model, conversion.program)
    search = _Search(checkpoint, target, asked, conversion, budget, candidates)
    kept: dict[str, QuantSpec | None] = dict.fromkeys(candidates)
    if budget.count(conversion, None) <= budget.limit:
        return _found(search, kept, {}, "nothing: the model is small enough as it is", True, notes)
    candidates, calls = reachable(model, candidates)
    search = _Search(checkpoint, target, asked, conversion, budget, candidates)
    overhead = _least(search)
    divergence, predictor = _measured(search, model, calls, tokens, progress)
    options = {
        path: [Option(given.nbytes(None), 0.0, None)]
        + [Option(given.nbytes(spec), divergence[path][spec], spec) for spec in given.specs]
        for path, given in candidates.items()
    }
    best = _solved(search, options, overhead)
    chosen = {path: option.spec for path, option in best.chosen.items()}
    return _found(search, chosen, divergence, predictor, best.exact, notes)


def _least(search: _Search) -> int:
    """Bytes of all but the candidates (headers, workspace …) in the smallest output; refuses a limit below that."""
    smallest = {path: min(given.specs, key=given.nbytes) for path, given in search.candidates.items()}
    least = search.budget.count(*search.output(dict(smallest)))
    if least > search.budget.limit:
        raise search.budget.impossible(least)
    return least - search.nbytes(dict(smallest))


def _solved(search: _Search, options: Mapping[str, list[Option]], overhead: int) -> Allocation:
    """The best choice whose output, counted to the byte, is within the limit.

    Headers and workspace depend on the choice, by a few bytes: those of the last choice are taken for the next.
    """
    best: Allocation | None = None
    limit = search.budget.limit
    seen = set()
    for _ in range(_ROUNDS):
        room = limit - overhead
        if room in seen:
            break
        seen.add(room)
        try:
            found = allocate(options, room)
        except QuantizationError:
            break
        chosen = {path: option.spec for path, option in found.chosen.items()}
        used = search.budget.count(*search.output(chosen))
        if used <= limit and (best is None or found.damage < best.damage):
            best = found
        if (1 - _NEAR) * limit <= used <= limit:
            break
        overhead = used - found.nbytes if used <= limit else overhead + used - limit
    if best is None:
        smallest = {path: [min(given, key=lambda option: option.nbytes)] for path, given in options.items()}
        best = allocate(smallest, sum(given[0].nbytes for given in smallest.values()))
    return best


def _measured(
    search: _Search, model: nn.Module, calls: Calls, tokens: Tokens | None, progress: Progress
) -> tuple[dict[str, dict[QuantSpec, float]], str]:
    """The damage of every setting of every module, and how it was predicted."""
    candidates, program = search.candidates, search.conversion.program
    weights = Weights(program, list(candidates))
    quantizer = search.target.quantizer
    progress.stage("measuring the error of every setting", sum(given.nbytes(None) for given in candidates.values()))
    errors, energy = {}, {}
    for path, given in candidates.items():
        errors[path], energy[path] = weight_errors(weights, path, given.specs, quantizer)
        progress.advance(given.nbytes(None))
    settings, count = _level(candidates)
    vocabulary = embedding_rows(search.conversion.config, {n: o.shape for n, o in program.outputs.items()}) or 2
    if tokens is None:
        length = max(2, min(_LENGTH, context_length(search.checkpoint.config) or _LENGTH, count))
        progress.stage("writing tokens to measure on", 0)
        tokens = make_tokens(search.checkpoint, model, program, vocabulary, max(1, count // length), length)
    wanted = [(path, spec) for path in calls.order for spec in _references(candidates[path], settings, search)]
    prepare(model, program, candidates)
    progress.stage(
        "measuring what rounding does to the output", sum(candidates[path].nbytes(None) for path, _ in wanted)
    )
    batch = _batch(candidates, tokens.ids, vocabulary, calls.last, len(wanted))
    modules = {path: given.module for path, given in candidates.items()}

    def advance(path: str) -> None:
        progress.advance(candidates[path].nbytes(None))

    try:
        divergence = measure_divergence(model, modules, weights, batch, wanted, quantizer, advance)
    except MlxportError:
        raise
    except Exception as error:  # third-party model code
        raise not_running(error) from error
    predictor = (
        f"divergence (KL) of the output when one module is rounded, measured at {settings} "
        f"setting{'s' if settings > 1 else ''} a module on {tokens.ids.size} tokens {tokens.origin}, other settings by "
        "the weights' squared error"
    )
    return damages(Measurement(errors, divergence, energy)), predictor


def _level(candidates: Mapping[str, Candidate]) -> tuple[int, int]:
    """Settings of a module to measure, and tokens to measure them on."""
    active = 0.0
    for given in candidates.values():
        experts = given.shape[0] if len(given.shape) > 2 else 1
        active += given.size * min(1.0, _ROUTED / experts)
    work = 2 * active * len(candidates)
    return next((settings, tokens) for settings, tokens, most in _LEVELS if work * settings * tokens <= most)


def _batch(candidates: Mapping[str, Candidate], ids: mx.array, vocabulary: int, last: str, wanted: int) -> Batch:
    """As many parts at once as memory holds; of a large vocabulary, logits of fewer tokens before too few parts."""
    others = [given.shape for path, given in candidates.items() if path != last] or [(1, 1)]
    widest = max(
        shape[1] * _ROUTED if len(shape) > 2 else shape[0]
        for shape in others
        if shape[0] != vocabulary or len(shape) > 2
    )
    head = last if last in candidates and candidates[last].shape[0] == vocabulary else ""
    for stride in _STRIDES if head else (1,):
        entries = ids.size * max(widest, vocabulary // stride)
        parts = min(_MOST_PARTS, wanted + 1, _PART_BYTES // (_COPIES * 4 * entries))
        if parts >= min(_MOST_PARTS // 2, wanted + 1):
            break
    return Batch(ids, max(2, parts), head, stride)


def _references(given: Candidate, settings: int, search: _Search) -> list[QuantSpec]:
    """The settings to measure: about the bits that the limit leaves, and where there are several those around."""
    whole = sum(other.size for other in search.candidates.values())
    rest = search.budget.count(search.conversion, None) - search.nbytes(dict.fromkeys(search.candidates))
    usual = (search.budget.limit - rest) * 8 / max(whole, 1) - 0.5
    group = next(size for size in (64, 32, 128) if any(spec.group_size == size for spec in given.specs))
    near = sorted((s for s in given.specs if s.group_size == group), key=lambda s: (abs(s.bits - usual), s.bits))
    return sorted(near[:settings], key=lambda s: s.bits)


def prepare(model: nn.Module, program: Program, candidates: Mapping[str, Candidate]) -> None:
    """Give the model its parameters, but the weights of the candidates; all in float32."""
    model.set_dtype(mx.float32)
    own = {f"{path}.weight" for path in candidates}
    lazy: dict[str, mx.array] | None = None
    given = []
    for name, output in program.outputs.items():
        if name in own:
            continue
        if output.value is None:
            lazy = lazy or lazy_outputs(program)
            array = lazy[name]
        else:
            array = Evaluator().full(output.value)
        array = array.astype(mx.float32) if mx.issubdtype(array.dtype, mx.floating) else array
        mx.eval(array)
        given.append((name, array))
    nn.Module.load_weights(model, given, strict=False)  # without the checks of a checkpoint


def _found(
    search: _Search,
    chosen: Mapping[str, QuantSpec | None],
    divergence: Mapping[str, Mapping[QuantSpec, float]],
    predictor: str,
    exact: bool,
    notes: tuple[str, ...],
) -> Found:
    output, request = search.output(chosen)
    budget, used = search.budget, search.budget.count(output, request)
    choices = tuple(
        Choice(path, spec, given.nbytes(spec), 0.0 if spec is None else divergence[path][spec], given.size)
        for path, given in search.candidates.items()
        for spec in [chosen[path]]
    )
    bits = tensor_bytes(output) * 8 / max(output.parameters, 1)
    report = AllocationReport(
        budget.target,
        budget.measure,
        budget.limit,
        used,
        bits,
        predictor,
        sum(choice.damage for choice in choices),
        exact,
        choices,
        search.target.quantizer,
        budget.memory(output, request),
        notes,
    )
    return Found(request, report, search.dtype)
