"""A language model's step of generation, captured with an example cache, and written for mlx-lm."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils import _pytree as pytree

from mlxport.errors import UnsupportedError
from mlxport.graph.build import Port, build
from mlxport.graph.capture.captured import Captured
from mlxport.graph.capture.export import CaptureError, capture
from mlxport.graph.capture.guards import size_rules
from mlxport.graph.capture.hub_kernels import has_kernels, whole_kernels
from mlxport.graph.capture.loops_over_chosen import loops_followed
from mlxport.graph.lower.one_function import MissingOps
from mlxport.graph.rewrite.caches.cached_step import NotCached
from mlxport.graph.rewrite.caches.changed_weights import without_changes_of_weights
from mlxport.graph.rewrite.caches.token_positions import NotCounted
from mlxport.layouts.generated.emitting import missing
from mlxport.layouts.generated.hf_model import example_features
from mlxport.layouts.generated.recurrent_step import RememberedExample, as_recurrent_step, example_of, left_as_it_was
from mlxport.layouts.generated.sequence_step import as_step, in_one_call, in_two_calls, is_encoder_decoder, source_name

__all__ = ["WITHOUT_CACHE", "cache_parameter", "emit_step", "takes_positions"]

WITHOUT_CACHE = "add --no-cache for a port of whole sequences, which is called from Python and does not generate"
_PARAMETERS = ("past_key_values", "cache_params", "cache", "state")
# A length of one fixes what follows from it, and equal ones become one symbol.
_BATCH, _PAST, _NEW, _SOURCE = 2, 9, 3, 7


class _UnknownCache(NotCached):
    """What is remembered is not in a cache of layers: it may be found all the same."""


class _FixedLength(NotCached):
    """A program came out that is of one length: what kept another way of calling from one is beside the point."""


def cache_parameter(forward: Any) -> str | None:
    """The parameter that takes what a model remembers of the tokens before; None where there is none."""
    return next((name for name in _PARAMETERS if name in inspect.signature(forward).parameters), None)


def takes_positions(model: Any) -> bool:
    """Whether a model is of BERT's kind and told positions: when it generates they are 0, 1, 2 …, unlike its own."""
    decodes = bool(getattr(getattr(model, "config", None), "is_decoder", False))
    return decodes and "position_ids" in inspect.signature(model.forward).parameters


def emit_step(model: Any, *, model_type: str = "", fold_batchnorm: bool = False) -> Port:
    """Write ``(input_ids, cache) -> logits`` of a transformers model for mlx-lm.

    Args:
        model: In eval mode, its config's ``use_cache`` true; parameters may take no memory.
        model_type: Value of ``ModelArgs.model_type``.
        fold_batchnorm: As of ``port``.

    Raises:
        UnsupportedError: It keeps nothing of the tokens before, or what mlx-lm's caches cannot.
    """
    parameter = cache_parameter(model.forward)
    if parameter is None:
        raise _not_cached(model, "its forward takes no cache")
    with _known_caches(model):  # the graph is rewritten by what it is given and gives
        return _emitted(model, parameter, model_type, fold_batchnorm)


def _emitted(model: Any, parameter: str, model_type: str, fold_batchnorm: bool) -> Port:
    problem: Exception | None = None
    for capture_step in _ways(model):
        try:
            try:
                captured, cache = capture_step(model, parameter, takes_positions(model))
                return build(captured, model_type=model_type, batchnorm=fold_batchnorm, cache=cache)
            except NotCounted:  # such a model relies on ``generate``, which counts for it
                if "position_ids" not in inspect.signature(model.forward).parameters:
                    raise
            captured, cache = capture_step(model, parameter, True)
            return build(captured, model_type=model_type, batchnorm=fold_batchnorm, cache=cache)
        except (NotCached, CaptureError) as error:
            tells_more = isinstance(error, _FixedLength) or isinstance(problem, _UnknownCache)
            problem = error if problem is None or tells_more else problem
        except MissingOps as error:
            raise missing(error.missing) from None
    raise _not_cached(model, str(problem)) from problem


def _ways(model: Any) -> Iterator[Callable[[Any, str, bool], tuple[Captured, Any]]]:
    """How the program may be captured, the next where one does not do."""
    yield _captured
    if is_encoder_decoder(model):  # it may rely on how ``generate`` calls it
        yield partial(_captured, call=in_two_calls)
        return
    if has_kernels(model):
        yield _captured_kernels
    yield _captured_recurrent


def _captured_kernels(model: Any, parameter: str, positioned: bool) -> tuple[Captured, RememberedExample]:
    """The same of a model that remembers in a way of its own, with functions that are captured whole."""
    return _captured_recurrent(model, parameter, positioned, each_token=False)


def _captured_recurrent(
    model: Any, parameter: str, positioned: bool, each_token: bool = True
) -> tuple[Captured, RememberedExample]:
    """The same of a model that remembers in a way of its own, whose recurrent modules are captured for one token."""
    from transformers.exporters.exporter_dynamo import reset_model_state
    from transformers.exporters.utils import apply_patches

    ids = _example_ids(model)
    kernels = nullcontext() if each_token else whole_kernels(model)
    with apply_patches("dynamo"), _experts_gathered(model), reset_model_state(model), kernels:
        example = example_of(model, parameter, ids, each_token)
        with as_recurrent_step(model, example, positioned):
            inputs = {"input_ids": ids[:, :_NEW].clone(), "given": example.given, "held": [*example.held.values()]}
            captured = capture(model, (), inputs, loops=False)
    without_changes_of_weights(captured)
    captured.each_token = {path: axes[0] or 0 for path, axes in example.axes.items()}
    return captured, example


@contextmanager
def _known_caches(model: Any) -> Iterator[None]:
    """Within, pytree sees into caches. For good it would in every module that is ported afterwards in the process."""
    from transformers.exporters.exporter_dynamo import register_cache_pytrees_for_model

    before = set(pytree.SUPPORTED_NODES)
    register_cache_pytrees_for_model(model)
    added = set(pytree.SUPPORTED_NODES) - before
    try:
        yield
    finally:
        for kind in added:
            pytree._deregister_pytree_node(kind)


def _example_ids(model: Any) -> torch.Tensor:
    vocabulary = int(model.config.get_text_config().vocab_size)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(min(3, vocabulary - 1), vocabulary, (_BATCH, _PAST), generator=generator)


def _captured(
    model: Any, parameter: str, positioned: bool, call: Callable[..., Any] = in_one_call
) -> tuple[Captured, Any]:
    """The program of a step and the example's cache.

    Args:
        model: The model.
        parameter: Which takes the cache.
        positioned: Whether it is told positions.
        call: How one with an encoder is called.
    """
    from transformers.exporters.exporter_dynamo import reset_model_state
    from transformers.exporters.utils import apply_patches

    generator, ids = torch.Generator().manual_seed(1), _example_ids(model)
    # With the patches a layer with a window keeps all tokens: their number is one symbol.
    with apply_patches("dynamo"), _experts_gathered(model), whole_kernels(model):
        cache = _example_cache(model, parameter, ids, call)
        step = as_step(model, call) if is_encoder_decoder(model) else nullcontext()
        with step, reset_model_state(model), _as_generated(model, parameter, positioned):
            inputs = {**_new_tokens(model, ids, generator), parameter: cache}
            captured = capture(model, (), inputs, loops=False)
    if is_encoder_decoder(model):
        _check_lengths(captured, captured.inputs[0])
    return captured, cache


def _check_lengths(captured: Captured, source: Any) -> None:
    """Raise NotCached where an encoder's program is one of a few lengths, of what counts blocks; say an upper limit."""
    sizes = [size.node.expr for size in source.meta["val"].shape if isinstance(size, torch.SymInt)]
    rules = size_rules(captured, [size for size in sizes if size.is_Symbol]) if len(sizes) == 2 else {}
    for rule in rules.values():
        if rule.high is None:
            continue
        if rule.low > 1:
            raise _FixedLength(
                f"its encoder's program is that of a text of {rule.low} to {rule.high} tokens, as the example's: "
                "others are computed in another way"
            )
        captured.notes.append(
            f"texts that are read have at most {rule.high} tokens (not checked): longer ones the original computes in "
            "another way"
        )


def _new_tokens(model: Any, ids: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Tokens of a step, beside those that an encoder has read."""
    new = ids[:, :_NEW].clone()  # a view would fix its sizes
    if not is_encoder_decoder(model):
        return {"input_ids": new}
    return {source_name(model): _source(model, ids, generator), "decoder_input_ids": new}


def _source(model: Any, ids: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """What an encoder reads: as many other tokens as its own length, or features as the model takes them."""
    if source_name(model) != "input_ids":
        return example_features(model)
    return torch.randint(int(ids.min()), int(ids.max()) + 1, (_BATCH, _SOURCE), generator=generator)


def _example_cache(model: Any, parameter: str, ids: torch.Tensor, call: Callable[..., Any]) -> Any:
    """What the model remembers of some tokens, of the right sizes and all zero: nothing is computed for it."""
    from transformers.cache_utils import EncoderDecoderCache

    source = _source(model, ids, torch.Generator().manual_seed(1)) if is_encoder_decoder(model) else ids
    # Numbers that only values say (an expert's tokens) get symbols: nothing that is remembered depends on them.
    symbols = ShapeEnv(allow_scalar_outputs=True, allow_dynamic_output_shape_ops=True)
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=symbols)
    try:
        with mode, left_as_it_was(model), torch.no_grad():
            tokens = mode.from_tensor(ids, static_shapes=True)
            if is_encoder_decoder(model):
                given = mode.from_tensor(source, static_shapes=True)
                output = loops_followed(model, lambda: call(model, given, tokens))
            else:
                output = loops_followed(model, lambda: model(input_ids=tokens, use_cache=True))
    except Exception as error:  # the model's own code
        raise NotCached.raised(error) from error
    cache = getattr(output, parameter, None)
    if isinstance(cache, EncoderDecoderCache) and (
        is_encoder_decoder(model) or not any(layer.is_initialized for layer in cache.cross_attention_cache.layers)
    ):
        cache = cache.self_attention_cache  # of a decoder that could have had an encoder
    if cache is None and getattr(model.config, "is_decoder", None) is False:
        raise NotCached("its config.json says is_decoder: false, so that tokens see those after them")
    if cache is None:
        raise _UnknownCache(f"it gives no {parameter} with use_cache=True")
    if not hasattr(cache, "layers"):
        raise _UnknownCache(f"a {type(cache).__name__} is a cache of unknown kind")
    return pytree.tree_map_only(torch.Tensor, lambda held: torch.zeros(held.shape, dtype=held.dtype), cache)


@contextmanager
def _experts_gathered(model: Any) -> Iterator[None]:
    """Each token multiplied by the matrices of its experts: other ways to compute it ask values how many there are."""
    configs = {id(config): config for part in model.modules() if (config := getattr(part, "config", None)) is not None}
    chosen = [config for config in configs.values() if hasattr(config, "_experts_implementation")]
    before = [config._experts_implementation for config in chosen]
    try:
        for config in chosen:
            config._experts_implementation = "batched_mm"
        yield
    finally:
        for config, name in zip(chosen, before, strict=True):
            config._experts_implementation = name


@contextmanager
def _as_generated(model: Any, parameter: str, positioned: bool) -> Iterator[None]:
    """Calls as transformers' ``generate`` has them: all layers hold as many tokens, those with windows, too."""

    def complete(_: Any, args: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        held = (getattr(layer, "keys", None) for layer in given[parameter].layers)
        lengths = [keys.shape[2] for keys in held if isinstance(keys, torch.Tensor) and keys.ndim == 4]
        for length in lengths[1:]:
            torch._check(length == lengths[0])
        if positioned and lengths:
            positions = torch.arange(lengths[0], lengths[0] + given["input_ids"].shape[1])
            given = {**given, "position_ids": positions[None]}
        return args, given

    hook = model.register_forward_pre_hook(complete, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def _not_cached(model: Any, reason: str) -> UnsupportedError:
    return UnsupportedError(
        f"{type(model).__name__} cannot generate with mlx-lm's caches: {reason}", hint=WITHOUT_CACHE
    )
