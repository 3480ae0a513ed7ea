"""Run one case of torch's own op databases through capture, lowering and MLX, and compare with torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import mlx.core as mx
import numpy as np
import torch
from torch.utils import _pytree as pytree

from mlxport.graph.capture.export import export
from mlxport.graph.lower.lowering import MX_DTYPES
from mlxport.graph.lower.one_function import MissingOps, compile_source, flat_source

# The one tolerance table: relative to each value, and absolute relative to the largest value of the output.
TOLERANCES = {
    torch.float32: (1e-4, 2e-5),
    torch.complex64: (1e-4, 2e-5),
    torch.bfloat16: (2e-2, 2e-2),
    torch.float16: (2e-3, 2e-3),
}
SAMPLES = 10


@dataclass(frozen=True)
class Outcome:
    """``status``: pass, unsupported (an op is missing), wrong (another result), error (anything else), unexported."""

    status: str
    reason: str = ""


class Case(torch.nn.Module):
    """A function with all its tensors as inputs, everything else fixed."""

    def __init__(self, function: Callable[..., Any], structure: Any, leaves: list[Any]) -> None:
        super().__init__()
        self.function, self.structure = function, structure
        self.leaves = [None if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        self.tensors = [index for index, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]

    def forward(self, *tensors: torch.Tensor) -> Any:
        leaves = list(self.leaves)
        for index, tensor in zip(self.tensors, tensors, strict=True):
            leaves[index] = tensor
        args, kwargs = pytree.tree_unflatten(leaves, self.structure)
        return self.function(*args, **kwargs)


def to_mx(tensor: torch.Tensor) -> mx.array:
    tensor = tensor.detach().resolve_conj().resolve_neg().contiguous()
    if tensor.dtype is torch.bfloat16:
        return mx.array(tensor.float().numpy()).astype(mx.bfloat16)
    return mx.array(tensor.numpy()).astype(MX_DTYPES[tensor.dtype])


def to_numpy(array: mx.array) -> np.ndarray:
    return np.array(array.astype(mx.float32) if array.dtype == mx.bfloat16 else array)


def run_case(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    process: Callable[[Any], Any] = lambda x: x,
) -> Outcome:
    """Export ``function(*args, **kwargs)``, lower it, run it on MLX, compare every output with torch's."""
    leaves, structure = pytree.tree_flatten((args, kwargs))
    case = Case(function, structure, leaves)
    tensors = tuple(leaf for leaf in leaves if isinstance(leaf, torch.Tensor))
    with torch.no_grad():
        wanted = pytree.tree_leaves(process(case(*[t.clone() for t in tensors])))
        try:
            program = export(case, tensors)
        except Exception as error:  # whatever torch.export says: the case is outside what it captures
            return Outcome("unexported", f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    try:
        source = flat_source(program.graph)
    except MissingOps as error:
        return Outcome("unsupported", str(error))
    values = [to_mx(tensor) for tensor in tensors]
    placeholders = [n for n in program.graph.nodes if n.op == "placeholder"]
    lifted = [_lifted(program, node.name) for node in placeholders[: len(placeholders) - len(values)]]
    got = list(compile_source(source)(*lifted, *values))
    mutated = len(program.graph_signature.user_inputs_to_mutate) + len(program.graph_signature.buffers_to_mutate)
    outputs = pytree.tree_leaves(
        process(pytree.tree_unflatten([as_torch(o) for o in got[mutated:]], program.call_spec.out_spec))
    )
    return compare(outputs, wanted)


Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


def run_calls(calls: Sequence[Call]) -> Outcome:
    """``run_case`` of several calls as one program, which takes the time of one; taken one by one if that fails."""

    def every(arguments: Any) -> Any:
        return [call[0](*args, **kwargs) for call, (args, kwargs) in zip(calls, arguments, strict=True)]

    together = run_case(every, ([call[1:] for call in calls],), {})
    if together.status == "pass":
        return together
    for index, (function, args, kwargs) in enumerate(calls):
        outcome = run_case(function, args, kwargs)
        if outcome.status != "pass":
            return Outcome(outcome.status, f"call {index}: {outcome.reason}")
    return Outcome(together.status, f"only together: {together.reason}")


def _lifted(program: torch.export.ExportedProgram, name: str) -> mx.array:
    signature = program.graph_signature
    target = {
        **signature.inputs_to_lifted_tensor_constants,
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
    }[name]
    return to_mx({**program.constants, **program.state_dict}[target])


def as_torch(value: Any) -> Any:
    if not isinstance(value, mx.array):
        return value
    tensor = torch.from_numpy(to_numpy(value).copy())
    return tensor.to(torch.bfloat16) if value.dtype == mx.bfloat16 else tensor


def compare(got: list[Any], wanted: list[Any]) -> Outcome:
    """Shapes and dtypes first, then values; float64 is expected as float32."""
    if len(got) != len(wanted):
        return Outcome("wrong", f"{len(got)} outputs, torch gives {len(wanted)}")
    for ours, theirs in zip(got, wanted, strict=True):
        if not isinstance(theirs, torch.Tensor):
            if ours != theirs:
                return Outcome("wrong", f"{ours!r}, torch gives {theirs!r}")
            continue
        theirs = theirs.detach().resolve_conj().resolve_neg()
        theirs = theirs.to(
            {torch.float64: torch.float32, torch.complex128: torch.complex64}.get(theirs.dtype, theirs.dtype)
        )
        if tuple(ours.shape) != tuple(theirs.shape) or ours.dtype != theirs.dtype:
            return Outcome(
                "wrong", f"{tuple(ours.shape)} {ours.dtype}, torch gives {tuple(theirs.shape)} {theirs.dtype}"
            )
        if theirs.dtype not in TOLERANCES:
            if not torch.equal(ours, theirs):
                return Outcome("wrong", f"{int((ours != theirs).sum())} of {theirs.numel()} integers differ")
            continue
        rtol, atol = TOLERANCES[theirs.dtype]
        finite = theirs[torch.isfinite(theirs)]
        scale = max(1.0, float(finite.abs().max())) if finite.numel() else 1.0
        if not torch.allclose(ours, theirs, rtol=rtol, atol=atol * scale, equal_nan=True):
            difference = (ours - theirs).abs().nan_to_num(float("inf")).max()
            return Outcome("wrong", f"differs by {float(difference):.2e} at scale {scale:.2e}")
    return Outcome("pass")


def samples(entry: Any, dtype: torch.dtype) -> Iterator[Any]:
    """The first ``SAMPLES`` forward samples of an OpInfo entry, seeded."""
    torch.manual_seed(0)
    found = entry.sample_inputs("cpu", dtype, requires_grad=False)
    return islice((sample for sample in found if not _drops(entry, sample)), SAMPLES)


def _drops(entry: Any, sample: Any) -> bool:
    """Whether the sample drops elements at random, which no port can repeat."""
    if entry.name == "nn.functional.multi_head_attention_forward":
        return bool(sample.args[9] > 0 and sample.kwargs["training"])
    return bool(sample.kwargs.get("dropout_p"))


def _sorted_values(values: torch.Tensor) -> torch.Tensor:
    order = (values.real + 1e-3 * values.imag).argsort(dim=-1)
    return values.gather(-1, order)


def _sorted_pairs(result: Any) -> Any:
    values, vectors = result
    matrix = (vectors * values[..., None, :]) @ vectors.inverse() if values.shape[-1] else vectors
    return _sorted_values(values), matrix


# Results that are unique only up to order: LAPACK libraries give eigenvalues in different ones.
CANONICAL: dict[str, Callable[[Any], Any]] = {"linalg.eig": _sorted_pairs, "linalg.eigvals": _sorted_values}


# Results with indices of values that may occur several times, where torch says of none which one it gives: the axis is
# the argument after these many.
TIED = {"mode": 0, "topk": 1, "kthvalue": 1, "sort": 0, "argsort": 0}


def _picked(entry: Any, sample: Any) -> Callable[[Any], Any]:
    """(values, indices) as (values, values at the indices, whether the indices differ)."""
    place = TIED[entry.name]
    dim = sample.kwargs.get("dim", sample.args[place] if len(sample.args) > place else -1)

    def process(result: Any) -> Any:
        values, indices = (None, result) if isinstance(result, torch.Tensor) else result
        x = sample.input.reshape(-1) if sample.input.ndim == 0 else sample.input
        places = indices.reshape(1) if sample.input.ndim == 0 else indices
        places = places if places.ndim == x.ndim else places.unsqueeze(dim)
        distinct = places.sort(dim).values.diff(dim=dim).ne(0).all()
        return values, indices.shape, x.gather(dim, places), distinct

    return process


def check_entry(entry: Any, dtype: torch.dtype = torch.float32) -> Outcome:
    """All samples of an OpInfo entry; ``unexported`` where torch cannot export the first one."""
    found = list(samples(entry, dtype))
    if len(found) > 1 and _pass_together(entry, found):
        return Outcome("pass", f"{len(found)} samples")
    passed = 0
    for index, sample in enumerate(found):
        outcome = run_case(entry.op, (sample.input, *sample.args), sample.kwargs, _process(entry, sample))
        if outcome.status == "unexported" and index > 0:
            continue  # torch's own limit: there is no program to port
        if outcome.status != "pass":
            return Outcome(outcome.status, f"sample {index}: {outcome.reason}")
        passed += 1
    return Outcome("pass", f"{passed} samples")


def _process(entry: Any, sample: Any) -> Callable[[Any], Any]:
    if entry.name in TIED and not sample.input.is_floating_point() and not sample.kwargs.get("stable"):
        return _picked(entry, sample)
    return CANONICAL.get(entry.name) or sample.output_process_fn_grad or (lambda x: x)


def _pass_together(entry: Any, found: Sequence[Any]) -> bool:
    """Whether all samples pass as one program, which is exported in the time of one of them."""
    calls = [((sample.input, *sample.args), dict(sample.kwargs)) for sample in found]
    processes = [_process(entry, sample) for sample in found]

    def every(calls: Any) -> Any:
        return [entry.op(*args, **kwargs) for args, kwargs in calls]

    def process(results: Any) -> Any:
        return [function(result) for function, result in zip(processes, results, strict=True)]

    try:
        return run_case(every, (calls,), {}, process).status == "pass"
    except Exception:  # whatever it is, it shows again when the samples are taken one by one
        return False


# Random numbers, uninitialised memory, sparse layouts and CUDA's jiterator are not what a port computes.
LEFT_OUT = frozenset(
    """
    cauchy exponential geometric log_normal normal.in_place uniform __rand__ randn randn_like rand_like randint
    randint_like
    multinomial normal normal.number_mean bernoulli nn.functional.rrelu nn.functional.dropout nn.functional.dropout2d
    nn.functional.dropout3d nn.functional.alpha_dropout nn.functional.feature_alpha_dropout.with_train
    nn.functional.feature_alpha_dropout.without_train native_dropout_backward
    empty empty_like empty_strided empty_permuted new_empty new_empty_strided
    sparse.sampled_addmm sparse.mm.reduce to_sparse
    jiterator_unary jiterator_binary jiterator_4inputs_with_extra_args jiterator_binary_return_by_ref
    jiterator_2inputs_2outputs
    """.split()
)


def entry_name(entry: Any) -> str:
    """An OpInfo entry's name with its variant."""
    return entry.name + (f".{entry.variant_test_name}" if entry.variant_test_name else "")
