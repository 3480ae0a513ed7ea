"""A language model's step of generation, captured with an example cache, and written for mlx-lm."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from mlxport.errors import UnsupportedError
from mlxport.graph.build import Port, build
from mlxport.graph.capture.export import CaptureError, capture
from mlxport.graph.capture.hub_kernels import whole_kernels
from mlxport.graph.lower.one_function import MissingOps
from mlxport.graph.rewrite.caches.cached_step import NotCached
from mlxport.layouts.generated.emitting import missing

__all__ = ["WITHOUT_CACHE", "cache_parameter", "emit_step"]

WITHOUT_CACHE = "add --no-cache for a port of whole sequences, which is called from Python and does not generate"
_PARAMETERS = ("past_key_values", "cache_params", "cache")
# A length of one fixes what follows from it, and equal ones become one symbol.
_BATCH, _PAST, _NEW = 2, 9, 3


def cache_parameter(forward: Any) -> str | None:
    """The parameter that takes what a model remembers of the tokens before; None where there is none."""
    return next((name for name in _PARAMETERS if name in inspect.signature(forward).parameters), None)


def emit_step(model: Any, *, model_type: str = "", fold_batchnorm: bool = False) -> Port:
    """Write ``(input_ids, cache) -> logits`` of a transformers model for mlx-lm.

    Args:
        model: In eval mode, its config's ``use_cache`` true; parameters may take no memory.
        model_type: Value of ``ModelArgs.model_type``.
        fold_batchnorm: As of ``port``.

    Raises:
        UnsupportedError: It keeps nothing of the tokens before, or what mlx-lm's caches cannot.
    """
    from transformers.exporters.exporter_dynamo import register_cache_pytrees_for_model, reset_model_state
    from transformers.exporters.utils import apply_patches

    parameter = cache_parameter(model.forward)
    if parameter is None:
        raise _not_cached(model, "its forward takes no cache")
    register_cache_pytrees_for_model(model)
    vocabulary = int(model.config.get_text_config().vocab_size)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(min(3, vocabulary - 1), vocabulary, (_BATCH, _PAST), generator=generator)
    cache = _example_cache(model, parameter, ids)
    new = ids[:, :_NEW].clone()  # a view would fix its sizes
    try:
        with apply_patches("dynamo"), reset_model_state(model), whole_kernels(model):
            captured = capture(model, (), {"input_ids": new, parameter: cache})
        return build(captured, model_type=model_type, batchnorm=fold_batchnorm, cache=cache)
    except NotCached as error:
        raise _not_cached(model, str(error)) from error
    except CaptureError as error:
        raise _not_cached(model, str(error)) from error
    except MissingOps as error:
        raise missing(error.missing) from None


def _example_cache(model: Any, parameter: str, ids: torch.Tensor) -> Any:
    """What the model remembers of some tokens, of the right sizes and all zero: nothing is computed for it."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with mode, torch.no_grad(), whole_kernels(model):
            output = model(input_ids=mode.from_tensor(ids), use_cache=True)
    except Exception as error:  # the model's own code
        raise _not_cached(model, f"{type(error).__name__}: {error}") from error
    cache = output.get(parameter)
    if cache is None:
        raise _not_cached(model, f"it gives no {parameter} with use_cache=True")
    if not hasattr(cache, "layers"):
        raise _not_cached(model, f"a {type(cache).__name__} is a cache of unknown kind")
    return pytree.tree_map_only(torch.Tensor, lambda held: torch.zeros(held.shape, dtype=held.dtype), cache)


def _not_cached(model: Any, reason: str) -> UnsupportedError:
    return UnsupportedError(
        f"{type(model).__name__} cannot generate with mlx-lm's caches: {reason}", hint=WITHOUT_CACHE
    )
