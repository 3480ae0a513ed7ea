"""Capture a PyTorch module as a functional ATen graph with its module tree: torch.export and what surrounds it."""

from __future__ import annotations

import inspect
import io
import keyword
import logging
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from mlxport.graph.capture.captured import Captured
from mlxport.graph.capture.composite_shapes import known_shapes
from mlxport.graph.capture.dataclass_inputs import known_dataclasses
from mlxport.graph.capture.exported_program import captured_program
from mlxport.graph.capture.fastpath import fast_paths
from mlxport.graph.capture.free_sizes import SizesTooLong, bounded_sizes, free_sizes
from mlxport.graph.capture.keyword_members import keyword_members
from mlxport.graph.capture.loops_over_chosen import loops_followed
from mlxport.graph.capture.origin import raised_at
from mlxport.graph.capture.quick_tables import quick_tables
from mlxport.graph.capture.reshaped_inputs import CallsInPlace
from mlxport.graph.capture.spelled_out import SpelledOut
from mlxport.graph.capture.wrapped_root import Inside, bring_out, hides_members
from mlxport.graph.lower import ops as _ops  # noqa: F401  (fills the table)
from mlxport.graph.lower.registry import LOWERINGS
from mlxport.printable import words

__all__ = ["CaptureError", "capture", "decompose", "export", "lowered_decompositions"]


class CaptureError(Exception):
    """The module cannot be captured.

    Attributes:
        hint: What to do.
        usage: Whether the example inputs are to blame.
    """

    def __init__(self, message: str, hint: str, *, usage: bool = False) -> None:
        super().__init__(message)
        self.hint, self.usage = hint, usage


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's own warnings and dumps: what stops a capture is raised, and said in one error."""
    level = logging.root.manager.disable
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(level)


def export(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None, dynamic: Any = None
) -> ExportedProgram:
    """The functional graph of ``module`` on example inputs; ops that the table has stay whole, others are decomposed.

    Args:
        module: In the mode (eval, train) in which it is to be captured.
        args: Positional example inputs.
        kwargs: Keyword example inputs.
        dynamic: ``dynamic_shapes`` as torch.export takes them, or None for the example's sizes.
    """
    with _quiet(), torch.no_grad(), known_shapes(), keyword_members():
        program = loops_followed(
            module, lambda: torch.export.export(module, args, kwargs, dynamic_shapes=dynamic, strict=False)
        )
        return decompose(program)


def decompose(program: ExportedProgram) -> ExportedProgram:
    """``program`` functionalised, with the ops that the table lacks taken apart as far as torch can."""
    with _quiet(), known_shapes(), quick_tables(), keyword_members():
        table = torch.export.default_decompositions()
        program = program.run_decompositions(_table(table))
        while found := {target: rule for target, rule in _rules(program) if target not in table}:
            table = {**table, **found}  # what an op is taken apart into may have to be taken apart itself
            program = program.run_decompositions(_table(table))
    return program


def lowered_decompositions() -> dict[Any, Any]:
    """How torch takes apart every op that the table does not have."""
    return _table({**torch._decomp.decomposition_table, **fast_paths()})


def _rules(program: ExportedProgram) -> Iterator[tuple[Any, Any]]:
    """The ops of a program that the table lacks and torch can take apart, and how."""
    rules = torch._decomp.decomposition_table
    for node in program.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and str(node.target) not in LOWERINGS:
            if node.target in rules:
                yield node.target, rules[node.target]


def _table(table: Any) -> dict[Any, Any]:
    return {target: rule for target, rule in table.items() if str(target) not in LOWERINGS}


def capture(
    module: torch.nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    *,
    dynamic: bool | Any = True,
) -> Captured:
    """Capture ``module`` on example inputs.

    Args:
        module: The module, in the mode in which it is to be ported; its tensors may be on ``meta``.
        args: Positional example inputs.
        kwargs: Keyword example inputs.
        dynamic: True: sizes of inputs are dynamic where torch.export proves them; False: the example's sizes; otherwise
            ``dynamic_shapes`` as torch.export takes them, by parameter name.

    Raises:
        CaptureError: The example does not fit the module, or torch.export cannot follow it.
    """
    kwargs = dict(kwargs or {})
    signature = inspect.signature(module.forward)
    name = type(module).__name__
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        wanted = ", ".join(map(str, signature.parameters.values()))
        raise CaptureError(
            f"the example inputs do not fit {name}.forward({wanted}): {error}",
            "give its arguments as the example: (args, kwargs); one that is a dict goes into a tuple: ({...},)",
            usage=True,
        ) from error
    calls = CallsInPlace()
    inside = hides_members(module)
    exported = Inside(module) if inside else module
    known = known_dataclasses(exported, (args, kwargs))
    with known, _explicit(exported, signature, args, kwargs, always=inside) as explicit:
        args, kwargs = _distinct(args, kwargs)
        attempts = _attempts(explicit, args, kwargs, dynamic)
        program, note = _exported(exported, args, kwargs, attempts, calls)
    if calls.assigns_data:
        raise CaptureError(
            f"torch.export cannot capture {name}: its forward assigns to .data of a tensor",
            "write to the tensor itself, under torch.no_grad(): x.copy_(y) for x.data = y",
        )
    captured = captured_program(program, exported, signature, args, kwargs)
    if special := _of_subclasses(captured.state):
        raise CaptureError(f"a port of {name} cannot read its weights", special)
    if calls.reshaped_inputs:
        captured.notes.append(f"{calls.reshaping} leaves an input in another shape; the port leaves it in its own")
    if inside:
        bring_out(captured)
    if note:
        captured.notes.append(note)
    return captured


def _attempts(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: bool | Any
) -> list[tuple[str, Any]]:
    """The ``dynamic_shapes`` that are tried in turn, and in words which sizes they leave free."""
    if dynamic is not True:
        return [("", dynamic or None)]
    free = [(words, signature.bind(*shapes, **named)) for words, (shapes, named) in free_sizes(args, kwargs)]
    return [*((words, dict(bound.arguments)) for words, bound in free), ("", None)]


def _exported(
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    attempts: list[tuple[str, Any]],
    calls: CallsInPlace,
) -> tuple[ExportedProgram, str]:
    """The program of the first attempt that torch.export follows, and what is to be said if it was not the first."""
    problem: BaseException | None = None
    note = ""
    for index, (_, shapes) in enumerate(attempts):
        try:
            return _followed(module, args, kwargs, shapes, calls, bounded=index < len(attempts) - 1), note
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # the user's code: whatever it raises is about that code
            problem = error if problem is None or isinstance(problem, SizesTooLong) else problem
            if index + 1 < len(attempts):
                left = attempts[index + 1][0]
                kept = f"only {left} are free, the others" if left else "sizes"
                which = "more of them free" if left else "dynamic ones"
                note = f"{kept} are fixed to the example's: torch.export with {which} says {_first_line(error)}"
    assert problem is not None
    inner = module.inner if isinstance(module, Inside) else module
    raise CaptureError(
        f"torch.export cannot capture {type(inner).__name__}: {_first_line(problem)}",
        calls.hint or _of_subclasses(dict(inner.named_parameters())) or _hint(problem),
    ) from problem


def _followed(
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    shapes: Any,
    calls: CallsInPlace,
    *,
    bounded: bool,
) -> ExportedProgram:
    """``export``; once more, on views of the inputs, where the forward gives a tensor another shape in place."""
    try:
        with calls, SpelledOut(), bounded_sizes(bounded):
            program = export(module, args, kwargs, shapes)
    except Exception:
        if not calls.reshaping:
            raise
    else:
        if not calls.reshaping:
            return program
    with calls, SpelledOut(), bounded_sizes(bounded), calls.views_of_inputs(module):
        return export(module, args, kwargs, shapes)


def _distinct(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The example with a copy where a tensor is given twice: torch.export takes one object for one input."""
    seen: set[int] = set()

    def own(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        known = id(leaf) in seen
        seen.add(id(leaf))
        return leaf.clone() if known else leaf

    distinct: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_map(own, (args, kwargs))
    return distinct


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in words(error).splitlines() if line.strip()]
    kind = "" if isinstance(error, SizesTooLong) else f"{type(error).__name__}: "
    text = f"{kind}{lines[0][:300] if lines else ''}"
    own = raised_at(error)
    return text if own is None else f"{text} (at {own.filename}:{own.lineno})"


def _hint(error: BaseException) -> str:
    if _of_packed_sequences(error):
        return (
            "packed sequences (pack_padded_sequence) depend on the values of the lengths, which no export can follow; "
            "give the recurrent layer the padded batch, and mask what lies beyond each length"
        )
    if "is mutated in the forward method" in words(error):
        return (
            "make the tensor a buffer (self.register_buffer in __init__), which the forward may write, "
            "or let the forward take it as an input and return it"
        )
    if "DataDependent" in type(error).__name__ or "data-dependent" in words(error):
        return "its control flow depends on values; use torch.where or torch.cond there, or port the part around it"
    return "see https://docs.pytorch.org/docs/stable/export.html for what can be captured; -v shows where it stops"


def _of_subclasses(tensors: Mapping[str, torch.Tensor]) -> str:
    """What to do about weights that are no plain tensors, as those that torchao quantizes; empty without such."""
    for name, tensor in tensors.items():
        kind = type(tensor.data)
        if kind is not torch.Tensor and not isinstance(tensor, FakeTensor) and tensor.device.type != "meta":
            return (
                f"{name} is a {kind.__name__}, which is no plain tensor: port the module as it is before its weights "
                "are quantized, and quantize the port (-q 4)"
            )
    return ""


def _of_packed_sequences(error: BaseException) -> bool:
    """Whether it was raised by packing or unpacking, or by a recurrent layer that was given a packed sequence."""
    frames = [(Path(frame.f_code.co_filename), frame.f_locals) for frame, _ in traceback.walk_tb(error.__traceback__)]
    files = {file.parts[-3:]: variables for file, variables in frames}
    layer = files.get(("nn", "modules", "rnn.py"), {})
    return ("nn", "utils", "rnn.py") in files or layer.get("batch_sizes") is not None


@contextmanager
def _explicit(
    module: torch.nn.Module,
    signature: inspect.Signature,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    always: bool = False,
) -> Iterator[inspect.Signature]:
    """Spell out what ``**kwargs`` of the forward catches: torch.export cannot give it dynamic shapes otherwise."""
    parameters = dict(signature.parameters)
    caught = next((p.name for p in parameters.values() if p.kind is p.VAR_KEYWORD), None)
    extra = signature.bind(*args, **kwargs).arguments.get(caught or "", {})
    if not extra and not always:
        yield signature
        return
    if unnamed := [name for name in extra if not name.isidentifier() or keyword.iskeyword(name)]:
        raise CaptureError(
            f"the example has an argument called {unnamed[0]!r}, which is no name in Python",
            "let the forward take it in a dict: forward(self, batch), with the example ({...},)",
            usage=True,
        )
    if extra:
        del parameters[caught or ""]
    spelled = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in extra]
    explicit = signature.replace(parameters=[*parameters.values(), *spelled])
    forward = module.forward

    def shim(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    shim.__signature__ = explicit  # type: ignore[attr-defined]
    module.__dict__["forward"] = shim
    try:
        yield explicit
    finally:
        del module.__dict__["forward"]
