"""From a limit to a recipe: open, count, measure, solve, count again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mlxport.allocate.allocation_report import AllocationReport, Choice, recipe_text
from mlxport.allocate.budget import Budget, make_budget, tensor_bytes
from mlxport.allocate.candidates import Candidate, find_candidates, reachable
from mlxport.allocate.judging import Verdict, gains
from mlxport.allocate.limits import Target
from mlxport.allocate.measure import Damages, Subject, measure
from mlxport.allocate.written_tokens import Tokens
from mlxport.errors import QuantizationError
from mlxport.fit import planned_dtype
from mlxport.layouts.conversion import Conversion, TracedModel
from mlxport.layouts.quantizing import check_unquantized
from mlxport.model.both_texts import called_with_both
from mlxport.progress import Progress
from mlxport.quant import QuantRequest, parse_recipe
from mlxport.quant.knapsack import Allocation, SizedSetting, allocate
from mlxport.types import QuantSpec

__all__ = ["Chosen", "find_allocation"]

_SCALES = 0.5  # bits of scale and bias for each weight, in groups of 64
_ROUNDS = 8
_SIMILAR = 0.95  # of a choice's bytes, that one setting for all must take to be compared with it
_USUAL_GROUP = 64
_NEAR = 1e-4  # of the limit: what else would fit in is not worth another count


@dataclass(frozen=True)
class Chosen:
    """A choice of settings.

    Attributes:
        request: What to quantize; None where everything fits as it is.
        report: What was chosen, and why.
        dtype: Of what is not quantized, as of ``convert``.
        conversion: To the output with these settings.
    """

    request: QuantRequest | None
    report: AllocationReport
    dtype: str
    conversion: Conversion


@dataclass(frozen=True)
class _Search:
    """What the search works on."""

    model: TracedModel
    target: Target
    budget: Budget
    candidates: Mapping[str, Candidate]

    def output(self, chosen: Mapping[str, QuantSpec | None]) -> tuple[Conversion, QuantRequest | None]:
        """The conversion with these settings, as ``convert`` makes it."""
        if not any(chosen.values()):
            return self.model.plain, None
        text = recipe_text(chosen, self.budget.target, self.target.quantizer)
        request = parse_recipe(text, Path("recipe.toml"), self.target.quantizer)
        return self.model.conversion(request), request

    def usual_bits(self) -> float:
        """About the bits that the limit leaves for a weight, without its scale and bias."""
        kept = self.nbytes(dict.fromkeys(self.candidates))
        room = self.budget.limit - (self.budget.count(self.model.plain, None) - kept)
        return room * 8 / max(sum(given.size for given in self.candidates.values()), 1) - _SCALES

    def options(self, damages: Damages) -> dict[str, list[SizedSetting]]:
        """What each module may be given."""
        return {
            path: [SizedSetting(given.nbytes(None), 0.0, None)]
            + [SizedSetting(given.nbytes(spec), damages[path][spec], spec) for spec in given.specs]
            for path, given in self.candidates.items()
        }

    def nbytes(self, chosen: Mapping[str, QuantSpec | None]) -> int:
        """Bytes of the candidates under these settings."""
        return sum(self.candidates[path].nbytes(spec) for path, spec in chosen.items())


def find_allocation(
    model: TracedModel,
    target: Target,
    *,
    max_shard_size: str | int,
    shard_by: str,
    progress: Progress,
) -> Chosen:
    """Choose bits and group size of every module such that the predicted damage is least within the limit.

    Reads weights in blocks, and never holds more than one module's.

    Args:
        model: The checkpoint's, in the dtype that was asked for; for a machine, ``auto`` makes float32 checkpoints
            bfloat16, as ``plan`` does.
        target: The limit.
        max_shard_size: As of ``convert``; headers count.
        shard_by: As of ``convert``.
        progress: What to report to.

    Raises:
        QuantizationError: Nothing is small enough (says the least possible), or the checkpoint is quantized already.
        UnsupportedError: mlx-lm cannot run the model here.
        UsageError: A context that the model was not made for.
    """
    dtype = planned_dtype(model.dtype, model.plain) if target.machine is not None else model.dtype
    notes: tuple[str, ...] = ()
    if dtype != model.dtype:
        notes = (f"the checkpoint holds {model.plain.dtype}: converted with --dtype {dtype} to fit",)
        model = model.at(dtype)
    checkpoint, conversion, skeleton = model.checkpoint, model.plain, model.skeleton()
    check_unquantized(skeleton)
    budget = make_budget(target, checkpoint, skeleton, conversion, max_shard_size, shard_by)
    measured = called_with_both(model.skeleton())  # one of its own: measuring makes it float32
    candidates = find_candidates(measured, conversion.program)
    search = _Search(model, target, budget, candidates)
    kept: dict[str, QuantSpec | None] = dict.fromkeys(candidates)
    if budget.count(conversion, None) <= budget.limit:
        return _found(search, kept, {}, "nothing: the model is small enough as it is", True, notes)
    candidates, calls = reachable(measured, candidates)
    search = _Search(model, target, budget, candidates)
    overhead = _least(search)
    subject = Subject(checkpoint, measured, conversion.program, candidates, calls, target.quantizer, progress)
    predictions, predictor, judging = measure(subject, search.usual_bits())
    verdict = _judged(search, subject, predictions, overhead, judging)
    divergence, predictor = predictions[verdict.least], "; ".join(filter(None, (predictor, verdict.words)))
    chosen, exact = verdict.uniform, False
    if chosen is None:
        best = _solved(search, search.options(divergence), overhead)
        chosen, exact = _specs(best), best.exact
    found = _found(search, chosen, divergence, predictor, exact, notes)
    return replace(found, report=replace(found.report, judging=judging.ids))


def _judged(search: _Search, subject: Subject, predictions: list[Damages], overhead: int, tokens: Tokens) -> Verdict:
    """Measure whole choices, all of them rounded, on tokens that none of them was made with."""
    room = search.budget.limit - overhead
    choices = [_specs(allocate(search.options(prediction), room)) for prediction in predictions]
    uniform = _uniform(search, overhead, search.nbytes(choices[0]))
    if uniform is None and len(choices) == 1:
        return Verdict(0)
    judged = [*choices, uniform] if uniform is not None else choices
    changes = [{path: spec for path, spec in choice.items() if spec is not None} for choice in judged]
    found = subject.divergences(changes, tokens, "comparing whole choices")
    means = [float(divergence.mean()) for divergence in found]
    least = means.index(min(means[: len(choices)]))
    words = f"the whole choice then measured {means[least]:.3g} on {tokens.ids.size} others"
    if uniform is None:
        return Verdict(least, None, words)
    each = gains(found[-1], found[least], tokens.kinds)
    if all(gain > error for gain, error in each):
        return Verdict(least, None, f"{words}, one setting for all {means[-1]:.3g}")
    differ = " and ".join(f"{gain:.2g} ± {error:.1g}" for gain, error in each)
    why = f"one setting for all kept: bits by module gained {differ} nats on {tokens.ids.size} others {tokens.origin}"
    return Verdict(least, uniform, why)


def _uniform(search: _Search, overhead: int, nbytes: int) -> dict[str, QuantSpec | None] | None:
    """One setting for all modules that takes about as many bytes as a choice, and fits; the largest such.

    Modules whose columns its groups do not divide get as many bits in the largest groups that do.
    """
    found: list[tuple[int, bool, int, dict[str, QuantSpec | None]]] = []
    for spec in dict.fromkeys(spec for given in search.candidates.values() for spec in given.specs):
        chosen = {path: _nearest(given.specs, spec) for path, given in search.candidates.items()}
        used = search.nbytes(chosen)
        if _SIMILAR * nbytes <= used <= search.budget.limit - overhead:
            found.append((used, spec.group_size == _USUAL_GROUP, len(found), chosen))
    for *_, chosen in sorted(found, key=lambda entry: entry[:3], reverse=True):
        if search.budget.count(*search.output(chosen)) <= search.budget.limit:
            return chosen
    return None


def _nearest(specs: Sequence[QuantSpec], wanted: QuantSpec) -> QuantSpec | None:
    same = [spec for spec in specs if spec.bits == wanted.bits and spec.mode == wanted.mode]
    return min(same, key=lambda spec: (spec.group_size != wanted.group_size, -spec.group_size), default=None)


def _specs(found: Allocation) -> dict[str, QuantSpec | None]:
    return {path: option.spec for path, option in found.chosen.items()}


def _least(search: _Search) -> int:
    """Bytes of all but the candidates (headers, workspace …) in the smallest output; refuses a limit below that."""
    smallest = {path: min(given.specs, key=given.nbytes) for path, given in search.candidates.items()}
    least = search.budget.count(*search.output(dict(smallest)))
    if least > search.budget.limit:
        raise search.budget.impossible(least)
    return least - search.nbytes(dict(smallest))


def _solved(search: _Search, options: Mapping[str, list[SizedSetting]], overhead: int) -> Allocation:
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
        chosen = _specs(found)
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


def _found(
    search: _Search,
    chosen: Mapping[str, QuantSpec | None],
    divergence: Mapping[str, Mapping[QuantSpec, float]],
    predictor: str,
    exact: bool,
    notes: tuple[str, ...],
) -> Chosen:
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
    return Chosen(request, report, search.model.dtype, output)
