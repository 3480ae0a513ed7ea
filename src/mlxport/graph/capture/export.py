"""Capture a PyTorch module as a functional ATen graph with its module tree: torch.export and what surrounds it."""

from __future__ import annotations

import inspect
import io
import keyword
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from mlxport.graph.capture.asserted_values import AssertedValues, masks_as_given
from mlxport.graph.capture.capture_errors import CaptureError, first_line, hint, of_subclasses, usage_hint
from mlxport.graph.capture.captured import Captured
from mlxport.graph.capture.composite_shapes import known_shapes
from mlxport.graph.capture.control_flow import control_flow_captured
from mlxport.graph.capture.dataclass_inputs import known_dataclasses
from mlxport.graph.capture.exported_program import captured_program
from mlxport.graph.capture.fastpath import fast_paths
from mlxport.graph.capture.fixed_sizes import SizeDecisions
from mlxport.graph.capture.followed_sizes import FollowedSizes, attempts_of, follow_sizes
from mlxport.graph.capture.free_sizes import SizesTooLong, bounded_sizes
from mlxport.graph.capture.gradient_switches import gradient_switches_left_out
from mlxport.graph.capture.input_names import tensor_names
from mlxport.graph.capture.keyword_members import keyword_members
from mlxport.graph.capture.known_numbers import KnownNumbers
from mlxport.graph.capture.larger_examples import LargerExample
from mlxport.graph.capture.left_out_caches import LeftOutCaches
from mlxport.graph.capture.loops_over_chosen import loops_followed
from mlxport.graph.capture.origin import whole_traces
from mlxport.graph.capture.packed_sequences import PackedSequences
from mlxport.graph.capture.quick_sizes import quick_sizes
from mlxport.graph.capture.quick_tables import quick_tables
from mlxport.graph.capture.replaced_calls import forward_replaced
from mlxport.graph.capture.reshaped_inputs import CallsInPlace
from mlxport.graph.capture.spelled_out import SpelledOut
from mlxport.graph.capture.time_loops.follow import Inputs, roll_up, shortened
from mlxport.graph.capture.trial_runs import TrialRuns, lacks_kernel
from mlxport.graph.capture.wrapped_root import Inside, bring_out, hides_members
from mlxport.graph.lower import ops as _ops  # noqa: F401  (fills the table)
from mlxport.graph.lower.registry import LOWERINGS
from mlxport.options.size_spec import SizeSpec

__all__ = ["CaptureError", "capture", "decompose", "export", "lowered_decompositions"]


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
    with (
        _quiet(),
        torch.no_grad(),
        known_shapes(),
        quick_sizes(),
        keyword_members(),
        control_flow_captured(),
        whole_traces(),
    ):
        with gradient_switches_left_out():
            program = loops_followed(
                module, lambda: torch.export.export(module, args, kwargs, dynamic_shapes=dynamic, strict=False)
            )
        return decompose(program)


def decompose(program: ExportedProgram) -> ExportedProgram:
    """``program`` functionalised, with the ops that the table lacks taken apart as far as torch can."""
    with _quiet(), known_shapes(), quick_sizes(), quick_tables(), keyword_members(), whole_traces():
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
    dynamic: bool | SizeSpec | Any = True,
    has_values: bool = False,
    loops: bool = True,
) -> Captured:
    """Capture ``module`` on example inputs.

    Args:
        module: The module, in the mode in which it is to be ported; its tensors may be on ``meta``.
        args: Positional example inputs.
        kwargs: Keyword example inputs.
        dynamic: True: sizes of inputs are dynamic where torch.export proves them; False: the example's sizes; a
            ``SizeSpec``: as it says; otherwise ``dynamic_shapes`` as torch.export takes them, by parameter name.

        has_values: Whether the weights are real. The module then runs first, so that a wrong example gets torch's own
            message, and sizes of 1 are tried.
        loops: Whether to roll loops up that torch.export unrolls, lengths that they go over free.

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
    runs = TrialRuns(module, (args, kwargs))
    first = _first_run(runs, name, args, kwargs) if has_values else None
    listening = _Listening(module, runs.written if first is not None else None)
    calls = listening.calls
    inside = hides_members(module)
    exported = Inside(module) if inside else module
    known = known_dataclasses(exported, (args, kwargs))
    with known, _explicit(exported, signature, args, kwargs, always=inside) as explicit:
        args, kwargs = _distinct(args, kwargs)
        if isinstance(dynamic, SizeSpec):
            named = tensor_names(explicit, args, kwargs)
            dynamic.check({name: tuple(leaf.shape) for name, leaf in named.items()})

        def follow(args: Any, kwargs: Any, attempts: list[tuple[str, Any]]) -> tuple[ExportedProgram, str]:
            return _exported(exported, args, kwargs, attempts, listening)

        def sizes_followed(inputs: Inputs) -> FollowedSizes:
            given = first if inputs is example or first is None else runs(*inputs)
            return follow_sizes(follow, explicit, *inputs, dynamic, runs, given, listening.decisions)

        def again(inputs: Inputs) -> ExportedProgram:
            return follow(*inputs, attempts_of(explicit, LargerExample(*inputs), dynamic))[0]

        example = args, kwargs
        short = shortened(exported, example) if loops and dynamic is True else example
        followed = sizes_followed(short)
        if loops and not roll_up(followed, exported, again if dynamic is True else None, short is example):
            followed = sizes_followed(example)
            roll_up(followed, exported, None, True)
    if calls.assigns_data:
        raise CaptureError(
            f"torch.export cannot capture {name}: its forward assigns to .data of a tensor",
            "write to the tensor itself, under torch.no_grad(): x.copy_(y) for x.data = y",
        )
    captured = captured_program(followed.program, exported, signature, followed.args, followed.kwargs)
    followed.tell(captured)
    if special := of_subclasses(captured.state):
        raise CaptureError(f"a port of {name} cannot read its weights", special)
    if calls.reshaped_inputs:
        captured.notes.append(f"{calls.reshaping} leaves an input in another shape; the port leaves it in its own")
    captured.notes += filter(None, [listening.asserted.note(), listening.caches.note()])
    if inside:
        bring_out(captured)
    return captured


class _Listening:
    """What looks at the calls of a forward while it is captured."""

    def __init__(self, module: torch.nn.Module, written: set[str] | None) -> None:
        """``written``: the buffers that the forward changes, None where that is not known."""
        self.calls, self.decisions, self.asserted = CallsInPlace(), SizeDecisions(module), AssertedValues()
        self.caches = LeftOutCaches()
        self.numbers = None if written is None else KnownNumbers(module, written)

    @contextmanager
    def entered(self, module: torch.nn.Module) -> Iterator[None]:
        """Look at the calls within, which are of ``module``."""
        with (
            self.calls, self.decisions, self.asserted, masks_as_given(), self.numbers or nullcontext(),
            SpelledOut(), PackedSequences().of(module), self.caches.of(module),
        ):  # fmt: skip
            yield


def _first_run(runs: TrialRuns, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any] | None:
    """What the module gives on the example; None where it cannot run here.

    Raises:
        CaptureError: It raises something, which is then told as it is.
    """
    if not runs.possible:
        return None
    try:
        return runs(args, kwargs)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the user's code: whatever it raises is about that code
        if lacks_kernel(error):
            return None
        raise CaptureError(
            f"{name} does not take the example inputs; in torch it raises {first_line(error)}",
            usage_hint(error),
            usage=True,
        ) from error


def _exported(
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    attempts: list[tuple[str, Any]],
    listening: _Listening,
) -> tuple[ExportedProgram, str]:
    """The program of the first attempt that torch.export follows, and what is to be said if it was not the first."""
    problem: BaseException | None = None
    note = ""
    for index, (_, shapes) in enumerate(attempts):
        try:
            return _followed(module, args, kwargs, shapes, listening, bounded=index < len(attempts) - 1), note
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # the user's code: whatever it raises is about that code
            problem = error if problem is None or isinstance(problem, SizesTooLong) else problem
            if index + 1 < len(attempts):
                left = attempts[index + 1][0]
                kept = f"only {left} are free, the others" if left else "sizes"
                which = "more of them free" if left else "dynamic ones"
                note = f"{kept} are fixed to the example's: torch.export with {which} says {first_line(error)}"
    assert problem is not None
    inner = module.inner if isinstance(module, Inside) else module
    raise CaptureError(
        f"torch.export cannot capture {type(inner).__name__}: {first_line(problem)}",
        listening.calls.hint or of_subclasses(dict(inner.named_parameters())) or hint(problem),
    ) from problem


def _followed(
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    shapes: Any,
    listening: _Listening,
    *,
    bounded: bool,
) -> ExportedProgram:
    """``export``; once more, on views of the inputs, where the forward gives a tensor another shape in place."""
    calls = listening.calls
    try:
        with listening.entered(module), bounded_sizes(bounded):
            program = export(module, args, kwargs, shapes)
    except Exception:
        if not calls.reshaping:
            raise
    else:
        if not calls.reshaping:
            return program
    with listening.entered(module), bounded_sizes(bounded), calls.views_of_inputs(module):
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
    with forward_replaced(module, lambda forward, *args, **kwargs: forward(*args, **kwargs), explicit):
        yield explicit
