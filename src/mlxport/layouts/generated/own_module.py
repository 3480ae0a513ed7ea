"""A PyTorch module of the user's own as a source: its factory, its tensors as a checkpoint, its port."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from mlxport.errors import SourceError, UsageError
from mlxport.graph.capture.examples import Example
from mlxport.layouts.base import LayoutOptions
from mlxport.layouts.generated.emitting import emit
from mlxport.layouts.generated.held_tensors import held_checkpoint
from mlxport.layouts.generated.reference_module import copied, main_dtype
from mlxport.layouts.generated.weights_trace import TORCH_DTYPES, GeneratedConversion, assemble
from mlxport.types import Checkpoint

__all__ = ["Factory", "is_factory", "load_factory", "open_module"]

Factory = Callable[[], Any]
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
            f"{spec!r} is not of the form FILE.py:FACTORY",
            hint="FACTORY is a function in FILE.py that returns (module, example inputs)",
        )
    path = Path(file).expanduser()
    if not path.is_file():
        raise SourceError(f"{path}: no such file", hint="FILE.py holds the function that returns the module")
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.path.insert(0, str(path.resolve().parent))
    sys.modules[module_spec.name] = module
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:  # the user's file: whatever it raises is about that file
        raise SourceError(
            f"{path} does not run: {type(error).__name__}: {error}", hint="run it with python to see where (or add -v)"
        ) from error
    factory = getattr(module, name, None)
    if not callable(factory):
        found = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        raise UsageError(
            f"{path} has no function {name}", hint=f"it has {', '.join(found[:8])}" if found else "it defines none"
        )
    result: Factory = factory
    return result


def _made(factory: Factory, what: str) -> tuple[torch.nn.Module, Example]:
    try:
        made = factory()
    except Exception as error:  # the user's function
        raise SourceError(
            f"{what} raises {type(error).__name__}: {error}", hint="add -v to see where in your code"
        ) from error
    form = "(module, args), (module, kwargs) or (module, args, kwargs)"
    if not isinstance(made, tuple) or len(made) not in (2, 3) or not isinstance(made[0], torch.nn.Module):
        got = f"a tuple of {len(made)}" if isinstance(made, tuple) else type(made).__name__
        raise UsageError(f"{what} returns {got}, expected {form}", hint="args is a tuple of example inputs")
    module, *inputs = made
    args: Any = ()
    kwargs: dict[str, Any] = {}
    for item in inputs:
        if isinstance(item, Mapping):
            kwargs = dict(item)
        else:
            args = tuple(item) if isinstance(item, tuple | list) else (item,)
    return module, Example("example", args, kwargs)


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
    original, example = _made(factory, what)
    training = [name or type(original).__name__ for name, part in original.named_modules() if part.training]
    original.eval()
    module, dtype = original, main_dtype(original, example)
    if options.dtype != "auto":  # the user's own module is left as it is
        dtype, wanted = options.dtype, TORCH_DTYPES[options.dtype]
        module, example = copied(original).to(wanted), example.to(wanted)
    port = emit(module, example, dynamic=options.dynamic, fold_batchnorm=options.fold_batchnorm)
    if training:
        port.notes.append("the module was in training mode; it is ported as in eval()")
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
