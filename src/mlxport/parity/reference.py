"""The original, run by transformers in torch: all that depends on its loading code stands here."""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import shlex
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import transformers

from mlxport.errors import ConfigError, MlxportError, UnsupportedError
from mlxport.layouts.generated.generation_step import takes_positions
from mlxport.layouts.generated.hf_weights import assign
from mlxport.layouts.mlx_lm.unsaid_sizes import in_question
from mlxport.parity.fp8 import source_weights
from mlxport.parity.torch_rows import read_tensor
from mlxport.source.part_names import TOWER
from mlxport.types import Checkpoint

__all__ = ["load_config", "load_reference", "logits", "reached_by_text", "state_dict", "text_config"]

# model_type -> module and class of what stands for models whose code is in their checkpoints, which is not run.
_OWN: Mapping[str, tuple[str, str]] = {"qwen": ("mlxport.parity.qwen_original", "QWenLMHeadModel")}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the load reports and bars of transformers: missing keys are checked, not printed."""
    logger = logging.getLogger("transformers")
    level, bars = logger.level, transformers.utils.logging.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            transformers.utils.logging.enable_progress_bar()


def load_config(checkpoint: Checkpoint) -> Any:
    """The checkpoint's config as transformers reads it.

    Raises:
        UnsupportedError: transformers does not know it.
    """
    if (own := _own(checkpoint)) is not None:
        return own.config_class.from_dict(dict(checkpoint.config))
    try:
        with quiet():
            config = _read_config(checkpoint)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UnsupportedError(
            f"{checkpoint.name}: transformers {transformers.__version__} cannot read its config: {error}",
            hint="without a reference there is nothing to verify against: convert with --verify none",
        ) from error
    # Weights come to the model as float32: it must not look for packed ones.
    for part in (config, text_config(config)):
        if getattr(part, "quantization_config", None) is not None:
            del part.quantization_config
    return config


def _own(checkpoint: Checkpoint) -> Any:
    """Our model of an architecture that transformers does not have; None for any other."""
    place = _OWN.get(checkpoint.config.get("model_type", ""))
    return place and getattr(importlib.import_module(place[0]), place[1])


def _read_config(checkpoint: Checkpoint) -> Any:
    if checkpoint.text_part:  # the file describes more than that
        return transformers.AutoConfig.for_model(**checkpoint.config)
    return transformers.AutoConfig.from_pretrained(
        checkpoint.root, trust_remote_code=checkpoint.trust_remote_code, local_files_only=True
    )


def text_config(config: Any) -> Any:
    """The part of a config that describes the language model."""
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def empty_model(checkpoint: Checkpoint) -> Any:
    """The checkpoint's model on meta, no weight in memory, buffers real, eager attention and experts."""
    from accelerate import init_empty_weights

    config, own = load_config(checkpoint), _own(checkpoint)
    options: dict[str, Any] = {"attn_implementation": "eager", "dtype": torch.float32}
    makers = [
        functools.partial(auto.from_config, trust_remote_code=checkpoint.trust_remote_code)
        for auto in (transformers.AutoModelForCausalLM, transformers.AutoModelForImageTextToText)
    ]
    errors = []
    for make in makers if own is None else [own._from_config]:
        try:
            with quiet(), init_empty_weights(include_buffers=False):
                return make(config, **options)
        except (ValueError, ImportError) as error:
            errors.append(str(error).splitlines()[0])
        except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError) as error:
            # transformers builds with the values of the config, and fails in its own words where one is odd.
            said = in_question(checkpoint.config)
            raise ConfigError(
                f"{checkpoint.location}/config.json: transformers cannot build the model that it describes: "
                f"{type(error).__name__}: {error}{said and '; '}{said}",
                hint="get config.json again from where the weights are from",
            ) from error
    raise UnsupportedError(
        f"transformers {transformers.__version__} has no generative model for {config.model_type!r}: {errors[0]}",
        hint="without a reference there is nothing to verify against: convert with --verify none",
    )


def state_dict(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Every tensor under its checkpoint name, scaled ones as float32."""
    scaled = source_weights(checkpoint)
    if scaled is None:
        return {name: read_tensor(ref) for name, ref in checkpoint.tensors.items()}
    names = [name for name in checkpoint.tensors if name.removesuffix("_scale_inv") not in scaled or name in scaled]
    return {name: scaled.rows(name) if name in scaled else read_tensor(checkpoint.tensors[name]) for name in names}


def reached_by_text(names: Iterable[str]) -> list[str]:
    """Of weights by name those that a text reaches, sorted: an export of the text model alone has no towers."""
    return sorted(name for name in names if not TOWER.search(name))


def load_reference(checkpoint: Checkpoint, weights: Mapping[str, torch.Tensor] | None = None) -> Any:
    """The torch model in float32, ready to run.

    Args:
        checkpoint: The original.
        weights: Tensors under checkpoint names to use instead of the checkpoint's.

    Raises:
        UnsupportedError: transformers does not have the model, or not all of its weights are there.
    """
    empty = empty_model(checkpoint)
    cls, config = type(empty), empty.config  # of a composite config, the part that this class reads
    tensors = dict(weights) if weights is not None else state_dict(checkpoint)
    empty.tie_weights()
    if (change := assign(empty, checkpoint).change) is not None:
        tensors = {change(name): tensor for name, tensor in tensors.items()}
    with quiet():
        model, info = cls.from_pretrained(
            None,
            config=config,
            state_dict=tensors,
            dtype=torch.float32,
            attn_implementation="eager",
            experts_implementation="eager",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are named below
        )
    absent = reached_by_text(info["missing_keys"]) + sorted(str(key[0]) for key in info["mismatched_keys"])
    if absent:
        raise UnsupportedError(
            f"transformers {transformers.__version__} finds no weights for {', '.join(absent[:4])}"
            f"{' …' if len(absent) > 4 else ''} of {checkpoint.name}: the reference would be partly random",
            hint=f"look at what it holds: mlxport inspect {shlex.quote(checkpoint.location)}",
        )
    return model.eval()


def logits(model: Any, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Logits of one sequence, float32, [tokens, vocabulary]."""
    given: dict[str, Any] = {"position_ids": torch.arange(len(ids))[None]} if takes_positions(model) else {}
    with torch.inference_mode():
        output = model(input_ids=torch.from_numpy(ids.copy())[None], use_cache=False, **given).logits
    if output is None:
        raise MlxportError(f"{type(model).__name__} returned no logits")
    return np.asarray(output[0].to(torch.float32).numpy())
