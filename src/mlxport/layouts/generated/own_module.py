"""A PyTorch module of the user's own as a source: its factory, its tensors as a checkpoint, its port."""

from __future__ import annotations

import ast
import functools
import importlib.util
import inspect
import re
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mlxport.errors import SourceError, UsageError
from mlxport.graph.capture.examples import Example
from mlxport.graph.capture.module_copies import copied, hollow_copy
from mlxport.graph.capture.unwrapping import check_module, unwrapped
from mlxport.layouts.base import LayoutOptions
from mlxport.layouts.generated.emitting import emit
from mlxport.layouts.generated.held_tensors import held_checkpoint
from mlxport.layouts.generated.reference_module import main_dtype
from mlxport.layouts.generated.weights_trace import TORCH_DTYPES, GeneratedConversion, assemble
from mlxport.printable import words
from mlxport.types import Checkpoint

__all__ = ["Factory", "is_factory", "load_factory", "open_module"]

Factory = Callable[[], Any]
_NO_FACTORY = (type, torch.nn.Module)  # can be called, but give no example inputs
_MOST_AXES = 8  # of a tensor that is read by rows


def is_factory(spec: str) -> bool:
    """Whether a source is meant to be ``FILE.py:FACTORY``."""
    return spec.rpartition(":")[0].endswith(".py")


def load_factory(spec: str) -> Factory:
    """The function that ``FILE.py:FACTORY`` names.

    Raises:
        UsageError: It is not of this form, or the file has no such function.
        SourceError: The file is not there, or does not run.
    """
    file, colon, name = spec.rpartition(":")
    if not colon or not file.endswith(".py") or not name.isidentifier():
        raise UsageError(
            f"{spec!r} is not of the form FILE.py:FACTORY", hint=_form_hint(Path(file or spec).expanduser())
        )
    path = Path(file).expanduser()
    if not path.is_file():
        raise SourceError(f"{path}: no such file", hint="FILE.py holds the function that returns the module")
    module = _run(path)
    factory = getattr(module, name, None)
    if not callable(factory) or isinstance(factory, _NO_FACTORY):
        found = [key for key, value in vars(module).items() if _could_be_factory(value, module.__name__)]
        raise UsageError(
            f"{path} has no function {name}{_instead(factory)}",
            hint=f"give one of {', '.join(found[:8])}" if found else _an_example(factory),
        )

    @functools.wraps(factory)
    def made() -> Any:
        with _beside(path):
            return factory()

    return made


def _could_be_factory(value: Any, file: str) -> bool:
    """Whether it is of the user's file, and can be called without arguments."""
    if not callable(value) or isinstance(value, _NO_FACTORY) or inspect.iscoroutinefunction(value):
        return False
    return getattr(value, "__module__", "") == file and not _needed(value)


def _needed(function: Callable[..., Any]) -> str:
    """The parameters that a call without arguments lacks; empty if there are none, or where it is not told."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return ""
    free = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return ", ".join(p.name for p in parameters if p.default is p.empty and p.kind not in free)


def _instead(named: Any) -> str:
    if not isinstance(named, _NO_FACTORY):
        return ""
    kind = "a class" if isinstance(named, type) else "a module"
    return f": it is {kind}, expected a function that returns (module, example inputs)"


def _an_example(named: Any) -> str:
    made = f"{named.__name__}()" if isinstance(named, type) else "Model()"
    return f"write one into the file: def make(): return {made}, (torch.randn(1, 3),)"


def _form_hint(path: Path) -> str:
    """What to give instead of a file alone: the functions in it that could be the factory, found without running it."""
    expected = "FACTORY is a function in FILE.py that returns (module, example inputs)"
    if path.suffix != ".py" or not path.is_file():
        return expected
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return expected
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    found = [node.name for node in functions if _takes_nothing(node.args)]
    return f"{expected}: {' or '.join(f'{path}:{name}' for name in found[:4])}" if found else expected


def _takes_nothing(given: ast.arguments) -> bool:
    positional = len(given.posonlyargs) + len(given.args)
    return positional == len(given.defaults) and None not in given.kw_defaults


def _run(path: Path) -> types.ModuleType:
    """The module of the user's file, under a name that no other module has, whatever the file is called."""
    name = f"mlxport_factory_{re.sub(r'[^0-9A-Za-z_]', '_', path.stem)}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _beside(path):
            spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the user's file: whatever it raises is about that file
        hint = "run it with python to see where (or add -v)"
        raise SourceError(f"{path} does not run: {_told(error)}", hint=hint) from error
    return module


@contextmanager
def _beside(path: Path) -> Iterator[None]:
    """What stands beside the file is imported first, as by ``python FILE.py``; later, if nothing else has its name."""
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
        if folder not in sys.path:
            sys.path.append(folder)


def _told(error: BaseException) -> str:
    """What the user's code raised, in one line."""
    if isinstance(error, SystemExit):
        return f"it calls sys.exit({'' if error.code is None else repr(error.code)})"
    return f"{type(error).__name__}: {words(error)}"


def _made(factory: Factory, what: str) -> tuple[torch.nn.Module, Example]:
    if needed := _needed(factory):
        raise UsageError(
            f"{what} needs arguments ({needed}), a factory takes none",
            hint="give them defaults, or write a function without arguments that calls it",
        )
    try:
        made = factory()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the user's function
        said = _told(error) if isinstance(error, SystemExit) else f"raises {_told(error)}"
        raise SourceError(f"{what} {said.removeprefix('it ')}", hint="add -v to see where in your code") from error
    form = "(module, args), (module, kwargs) or (module, args, kwargs)"
    if inspect.iscoroutine(made):
        made.close()
        raise UsageError(
            f"{what} returns a coroutine (async def), expected {form}",
            hint="give a plain function; asyncio.run in it runs a coroutine",
        )
    if not isinstance(made, tuple) or len(made) not in (2, 3):
        got = f"a tuple of {len(made)}" if isinstance(made, tuple) else type(made).__name__
        raise UsageError(f"{what} returns {got}, expected {form}", hint="args is a tuple of example inputs")
    module, *inputs = made
    check_module(module, f"{what} returns as its module")
    return module, Example.given(*inputs)


def open_module(
    factory: Factory,
    options: LayoutOptions,
    *,
    what: str,
) -> tuple[GeneratedConversion, Checkpoint]:
    """Port the module that a factory makes.

    Args:
        factory: Returns the module and its example inputs.
        options: Dtype, quantization, and those of ``port``.
        what: What to call the factory in an error.
    """
    made, example = _made(factory, what)
    original = unwrapped(hollow_copy(made))
    training = any(part.training for part in original.modules())
    original.eval()
    module, dtype = hollow_copy(original), main_dtype(original, example)
    if options.dtype != "auto":
        dtype, wanted = options.dtype, TORCH_DTYPES[options.dtype]
        module, example = copied(original).to(wanted), example.copied(wanted)
    port = emit(module, example, dynamic=options.dynamic, fold_batchnorm=options.fold_batchnorm, has_values=True)
    if training:
        port.notes.append("the module was in training mode; it is ported as in eval()")
    port.notes += port.sizes
    state = {name: tensor for name, tensor in port.captured.state.items() if tensor.ndim <= _MOST_AXES}
    checkpoint = held_checkpoint(state, {"model_type": port.model_type}, type(original).__name__)
    maps = {name: _plain(name) for name in checkpoint.tensors}
    config = {"architectures": [type(module).__name__]}
    conversion = assemble(
        port, checkpoint.tensors, maps, example, lambda: original,
        dtype=dtype, quant=options.quant, config=config, mlxfn=options.mlxfn,
    )  # fmt: skip
    return conversion, checkpoint


def _plain(name: str) -> Any:
    return lambda arrays: arrays[name]
