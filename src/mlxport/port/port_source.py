"""What is ported into a folder: a module of the user's own, or a transformers checkpoint, captured and emitted."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import torch

from mlxport.convert.resolved_options import ResolvedOptions
from mlxport.errors import SourceError, UnsupportedError, UsageError
from mlxport.graph.build import Port
from mlxport.graph.capture.examples import Example, other_sizes
from mlxport.layouts.generated.weights_trace import GeneratedConversion, assemble
from mlxport.parity.port_bisect import first_divergence
from mlxport.parity.port_parity import PortParity, copied, in_float32, main_dtype, verify_port
from mlxport.port.in_memory import emit
from mlxport.types import Checkpoint

__all__ = ["Factory", "PortSource", "load_factory", "open_generated", "open_module"]

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
Factory = Callable[[], Any]


@dataclass(frozen=True)
class PortSource:
    """An emitted port with what it takes to verify it.

    Attributes:
        conversion: Weights and config to write.
        example: Inputs that it was captured with.
        reference: Makes the original, computing in float32.
    """

    conversion: GeneratedConversion
    example: Example
    reference: Callable[[], Any] = field(repr=False)

    @property
    def port(self) -> Port:
        """The emitted source and what it was made from."""
        return self.conversion.port

    def compare(
        self,
        model: nn.Module,
        *,
        dtype: str,
        bits: int | None,
        expected: Mapping[str, mx.array] | None = None,
        on_outputs: Callable[[Example, Mapping[str, mx.array]], None] | None = None,
    ) -> PortParity:
        """Verify a port of it; where that fails, the report names the first module that diverges.

        Args:
            model: The port with its weights.
            dtype: Its main dtype.
            bits: Fewest bits of a quantized module, or None.
            expected: What its weights should be, by path, where that is known.
            on_outputs: Called with its outputs of each input set.
        """
        original = self.reference()
        report = verify_port(
            model,
            original,
            [self.example],
            dtype=dtype,
            bits=bits,
            others=lambda: other_sizes(self.port.captured),
            on_outputs=on_outputs,
        )
        if report.passed:
            return report
        divergence = first_divergence(
            model, original, self.example, dtype=dtype, quantized=bits is not None, expected=expected
        )
        return replace(report, divergence=divergence)


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
    folder: Path,
    options: ResolvedOptions,
    *,
    what: str,
) -> tuple[PortSource, Checkpoint]:
    """Port the module that a factory makes.

    Args:
        factory: Returns the module and its example inputs.
        folder: Where its tensors are stored for the conversion to read.
        options: Dtype, quantization, and those of ``port``.
        what: What to call the factory in an error.
    """
    original, example = _made(factory, what)
    training = [name or type(original).__name__ for name, part in original.named_modules() if part.training]
    original.eval()
    module, dtype = original, main_dtype(original, example)
    if options.dtype != "auto":  # the user's own module is left as it is
        dtype, wanted = options.dtype, _DTYPES[options.dtype]
        module, example = copied(original).to(wanted), example.to(wanted)
    port = emit(module, example, dynamic=options.dynamic, fold_batchnorm=options.fold_batchnorm)
    if training:
        port.notes.append("the module was in training mode; it is ported as in eval()")
    checkpoint = _saved(port.captured.state, port.model_type, folder)
    maps = {name: _plain(name) for name in checkpoint.tensors}
    config = {"architectures": [type(module).__name__]}
    conversion = assemble(port, checkpoint.tensors, maps, dtype=dtype, quant=options.quant, config=config)
    return PortSource(conversion, example, lambda: in_float32(original, example)), checkpoint


def _plain(name: str) -> Any:
    return lambda arrays: arrays[name]


_NARROW = {torch.complex128: torch.complex64}  # safetensors has no wider one, nor has MLX


def _saved(state: Mapping[str, torch.Tensor], model_type: str, folder: Path) -> Checkpoint:
    """Tensors as a checkpoint under ``folder``, which the conversion can read."""
    from safetensors.torch import save_file

    from mlxport.source import open_checkpoint

    tensors = {
        name: tensor.detach().contiguous().clone().to(_NARROW.get(tensor.dtype, tensor.dtype))
        for name, tensor in state.items()
        if tensor.ndim <= 8
    }
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    save_file(tensors, folder / "model.safetensors")
    return open_checkpoint(folder)


def open_generated(checkpoint: Checkpoint, options: ResolvedOptions) -> PortSource:
    """Port the transformers model that a checkpoint is of; its weights stay on disk.

    Raises:
        UnsupportedError: transformers has no such model, or it cannot be captured.
    """
    from mlxport.layouts.generated import hf_model

    if checkpoint.config.get("quantization_config"):
        raise UnsupportedError(
            f"{checkpoint.location}: its weights are quantized already, which the generated layout does not read",
            hint="start from the unquantized checkpoint",
        )
    dtype = _stored_dtype(checkpoint) if options.dtype == "auto" else options.dtype
    port, example, maps = _emitted(checkpoint, options, dtype)
    conversion = assemble(port, checkpoint.tensors, maps, dtype=dtype, quant=options.quant, config=checkpoint.config)

    def reference() -> Any:
        from mlxport.parity.lazy_reference import lazy_parameters

        trust = options.trust_remote_code
        fresh = hf_model.empty_model(checkpoint, dtype=torch.float32, attention="eager", trust_remote_code=trust)
        return lazy_parameters(fresh, checkpoint)

    return PortSource(conversion, example, reference)


def _emitted(checkpoint: Checkpoint, options: ResolvedOptions, dtype: str) -> tuple[Port, Example, dict[str, Any]]:
    """Source, example inputs, and how each tensor is made of the checkpoint's; eager attention is the second choice."""
    from mlxport.layouts.generated import hf_model
    from mlxport.layouts.generated.hf_weights import weight_maps

    trust, model_type = options.trust_remote_code, str(checkpoint.config.get("model_type", ""))
    dynamic, fold = options.dynamic, options.fold_batchnorm
    problem: UnsupportedError | None = None
    for attention in ("sdpa", "eager"):
        model = hf_model.empty_model(checkpoint, dtype=_DTYPES[dtype], attention=attention, trust_remote_code=trust)
        maps = weight_maps(model, checkpoint)
        example = Example("example", (), hf_model.example_inputs(model))
        try:
            with hf_model.hollow(model):
                port = emit(model, example, dynamic=dynamic, fold_batchnorm=fold, model_type=model_type)
        except UnsupportedError as error:
            problem = problem or error
            continue
        return port, example, _shared(model, maps)
    assert problem is not None
    raise problem


def _shared(model: Any, maps: Mapping[str, Any]) -> dict[str, Any]:
    """``maps`` with the other names of parameters that are shared."""
    named = dict(model.named_parameters(remove_duplicate=False))
    known = {id(named[name]): entry for name, entry in maps.items() if name in named}
    return {**{name: known[id(item)] for name, item in named.items() if id(item) in known}, **maps}


def _stored_dtype(checkpoint: Checkpoint) -> str:
    """The dtype that the config names, else that of most of the stored elements."""
    named = str(checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype") or "").removeprefix("torch.")
    if named in _DTYPES:
        return named
    sizes: dict[str, int] = {}
    for ref in checkpoint.tensors.values():
        sizes[ref.dtype] = sizes.get(ref.dtype, 0) + ref.size
    names = {"F16": "float16", "BF16": "bfloat16"}
    return names.get(max(sizes, key=lambda key: sizes[key]), "float32") if sizes else "float32"
