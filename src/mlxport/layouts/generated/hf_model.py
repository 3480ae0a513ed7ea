"""A transformers model without its weights, and inputs to capture it with."""

from __future__ import annotations

import inspect
import mmap
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from mlxport.errors import ConfigError, UnsupportedError
from mlxport.layouts.generated.timm_models import load_timm
from mlxport.source.open_clip_config import is_open_clip
from mlxport.source.timm_config import arguments_once, is_timm, picture_shape
from mlxport.types import Checkpoint

__all__ = ["empty_model", "example_features", "example_inputs", "hollow", "read_config"]

_BUILD_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError)
_LENGTH, _BATCH = 11, 2
# Linux refuses more pages than it has memory unless it is told that none is wanted (asm-generic/mman.h); Python names
# that flag from 3.13 on.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000) if sys.platform == "linux" else 0
_UNRESERVED = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE


def read_config(checkpoint: Checkpoint, *, use_cache: bool = False) -> Any:
    """The checkpoint's config as transformers reads it, set to plain tensors in and a ModelOutput out.

    Args:
        checkpoint: The opened source.
        use_cache: Whether the model is to remember what it has read.

    Raises:
        UnsupportedError: transformers does not know it.
    """
    if is_timm(checkpoint.config):
        load_timm()
    try:
        if is_open_clip(checkpoint.root):
            config = transformers.CLIPConfig(**checkpoint.config)
        else:
            config = transformers.AutoConfig.from_pretrained(
                checkpoint.root, trust_remote_code=checkpoint.trust_remote_code, local_files_only=True
            )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UnsupportedError(
            f"{checkpoint.location}: transformers {transformers.__version__} cannot read its config: {error}",
            hint="a module of your own is ported by: mlxport port FILE.py:FACTORY DST",
        ) from error
    if is_timm(checkpoint.config):
        config.model_args = arguments_once(config.model_args)
    for part in (
        config,
        *(value for value in vars(config).values() if isinstance(value, transformers.PreTrainedConfig)),
    ):
        if hasattr(part, "use_cache"):
            part.use_cache = use_cache
        # Weights are given as the checkpoint holds them: a block that it was opened without is none of theirs.
        if getattr(part, "quantization_config", None) is not None:
            del part.quantization_config
    return config


def _model_class(checkpoint: Checkpoint, config: Any) -> Any:
    """The class that the config names, else the base model."""
    for name in checkpoint.config.get("architectures") or ():
        found = getattr(transformers, str(name), None)
        if isinstance(found, type) and issubclass(found, PreTrainedModel):
            return found
    return None


def _without_pooler(cls: Any, checkpoint: Checkpoint) -> dict[str, bool]:
    """What leaves the layer out that a base model has after its states, where weights of a head hold none."""
    if cls is None or "add_pooling_layer" not in inspect.signature(cls.__init__).parameters:
        return {}
    return {} if any("pooler" in name.split(".") for name in checkpoint.tensors) else {"add_pooling_layer": False}


def empty_model(checkpoint: Checkpoint, *, dtype: torch.dtype, attention: str = "sdpa", use_cache: bool = False) -> Any:
    """The checkpoint's model in eval mode, its parameters taking no memory, its buffers real.

    Args:
        checkpoint: The opened source.
        dtype: Of the parameters.
        attention: transformers' ``attn_implementation``; ``eager`` is taken where the model has no other.
        use_cache: Whether it is to remember what it has read.

    Raises:
        UnsupportedError: transformers has no such model.
        ConfigError: It cannot build what the config describes.
    """
    from accelerate import init_empty_weights

    config = read_config(checkpoint, use_cache=use_cache)
    cls = _model_class(checkpoint, config)
    for implementation in dict.fromkeys((attention, "eager")):
        options: dict[str, Any] = {
            "attn_implementation": implementation,
            "dtype": dtype,
            **_without_pooler(cls, checkpoint),
        }
        try:
            with init_empty_weights(include_buffers=False):
                if cls is not None:
                    model = cls._from_config(config, **options)
                else:
                    model = transformers.AutoModel.from_config(
                        config, trust_remote_code=checkpoint.trust_remote_code, **options
                    )
        except (ValueError, ImportError) as error:
            if implementation != "eager":
                continue
            raise UnsupportedError(
                f"transformers {transformers.__version__} has no model for {checkpoint.location}: {error}",
                hint="a module of your own is ported by: mlxport port FILE.py:FACTORY DST",
            ) from error
        except _BUILD_ERRORS as error:
            raise ConfigError(
                f"{checkpoint.location}/config.json: transformers cannot build the model that it describes: "
                f"{type(error).__name__}: {error}",
                hint="get config.json again from where the weights are from",
            ) from error
        model.tie_weights()
        _compute_buffers(model)
        _compute_frozen(model, checkpoint)
        return model.eval()
    raise AssertionError("unreachable")


def _compute_buffers(model: PreTrainedModel) -> None:
    """Compute buffers that timm's modules leave empty while their parameters take no memory (Swin's positions)."""
    waiting = [module for module in model.modules() if hasattr(module, "init_non_persistent_buffers")]
    if not waiting:
        return
    empty = [(module, dict(module._parameters)) for module in model.modules()]
    with hollow(model):  # the buffers get the device and the dtype of parameters
        for module in waiting:
            module.init_non_persistent_buffers()
    for module, parameters in empty:
        module._parameters.update(parameters)


def _compute_frozen(model: PreTrainedModel, checkpoint: Checkpoint) -> None:
    """Compute parameters that are not trained and that the checkpoint leaves out (Marian's sinusoids): as buffers."""
    for name, parameter in list(model.named_parameters()):
        if parameter.requires_grad or name in checkpoint.tensors:
            continue
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        first, second = (_initial(model, module, leaf, parameter) for _ in range(2))
        if torch.equal(first, second):  # neither random nor left as it was
            del module._parameters[leaf]
            module.register_buffer(leaf, first)
        else:
            module._parameters[leaf] = parameter


def _initial(model: PreTrainedModel, module: torch.nn.Module, leaf: str, like: torch.Tensor) -> torch.Tensor:
    """What transformers gives a parameter before a checkpoint is loaded."""
    value = torch.full(like.shape, torch.nan, dtype=like.dtype)
    module._parameters[leaf] = torch.nn.Parameter(value, requires_grad=False)
    model._init_weights(module)  # type: ignore[no-untyped-call]
    return module._parameters[leaf].detach()


@contextmanager
def hollow(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """``model`` with parameters on the CPU that take no memory: pages that nothing has touched, and no file.

    Capture runs on them as on real ones (their device is the CPU's, their strides are right) and touches no page.
    """
    made: dict[int, torch.nn.Parameter] = {}
    for name, item in dict(model.named_parameters(remove_duplicate=False)).items():
        if id(item) not in made:
            made[id(item)] = torch.nn.Parameter(_untouched(item), requires_grad=False)
        owner, _, leaf = name.rpartition(".")
        model.get_submodule(owner)._parameters[leaf] = made[id(item)]
    yield model


def _untouched(like: torch.Tensor) -> torch.Tensor:
    """A tensor of the same kind, zero wherever it is read; the system gives memory to what is written only."""
    count = max(1, like.numel())
    pages = mmap.mmap(-1, count * like.element_size(), flags=_UNRESERVED)
    return torch.frombuffer(pages, dtype=like.dtype, count=count)[: like.numel()].view(like.shape)


def example_features(model: Any) -> torch.Tensor:
    """Noise of small sizes as a model's main input, where that is no tokens.

    Raises:
        UnsupportedError: It is of a kind that cannot be guessed.
    """
    made = _main(model.main_input_name, model.config, model.dtype, torch.Generator().manual_seed(0))
    if made is None:
        raise _no_example(model)
    return made


def _no_example(model: Any) -> UnsupportedError:
    return UnsupportedError(
        f"{type(model).__name__}: no example can be made for its main input {model.main_input_name!r}",
        hint="write a factory that returns the model and an example: mlxport port FILE.py:FACTORY DST",
    )


def example_inputs(model: Any, part: Collection[str] | None = None) -> dict[str, Any]:
    """Inputs that ``model`` takes, of small sizes, from the names of its forward's parameters and its config.

    A decoder is called without a mask (it is causal by itself), an encoder with one, so that batches may be padded.

    Args:
        model: The model.
        part: What a part of it may take, where it is not called as a whole.

    Returns:
        Keyword arguments: int64 [2, 11] token ids, float [2, channels, height, width] pixels, …

    Raises:
        UnsupportedError: A main input is of a kind that cannot be guessed.
    """
    config = model.config
    words = config if part is None else config.get_text_config()
    names = set(inspect.signature(model.forward).parameters) if part is None else set(part)
    generator = torch.Generator().manual_seed(0)
    inputs: dict[str, Any] = {}
    wanted = [model.main_input_name]
    wanted += [name for name in ("input_ids", "pixel_values", "input_values", "input_features") if name in names]
    for name in dict.fromkeys(wanted):
        if name in names and (value := _main(name, config, model.dtype, generator)) is not None:
            inputs[name] = value
    if not inputs:
        raise _no_example(model)
    if "input_ids" in inputs:
        ids = inputs["input_ids"]
        if "decoder_input_ids" in names:
            inputs["decoder_input_ids"] = ids[:, :7].clone()
        if "attention_mask" in names and not _is_decoder(model):
            inputs["attention_mask"] = torch.ones_like(ids)
        if "token_type_ids" in names and getattr(words, "type_vocab_size", 0) > 1:
            inputs["token_type_ids"] = torch.zeros_like(ids)
    elif "decoder_input_ids" in names:
        inputs["decoder_input_ids"] = _ids(config, generator, 7)
    return inputs


def _is_decoder(model: Any) -> bool:
    config = model.config
    return bool(type(model).__name__.endswith("ForCausalLM") or getattr(config, "is_decoder", False)) and not getattr(
        config, "is_encoder_decoder", False
    )


def _parts(config: Any) -> list[Any]:
    return [config, *(value for value in vars(config).values() if isinstance(value, transformers.PreTrainedConfig))]


def _find(config: Any, *names: str) -> Any:
    """The first of ``names`` that the config, or a part of it, has."""
    for name in names:
        for part in _parts(config):
            value = getattr(part, name, None)
            if value is not None and not isinstance(value, Mapping):
                return value
    return None


def _ids(config: Any, generator: torch.Generator, length: int = _LENGTH) -> torch.Tensor:
    vocabulary = int(_find(config.get_text_config(), "vocab_size") or _find(config, "vocab_size") or 100)
    low = min(8, vocabulary - 1)  # beyond the usual special tokens
    most = _find(config.get_text_config(), "max_position_embeddings")
    length = min(length, most) if isinstance(most, int) and most > 1 else length
    ids = torch.randint(low, vocabulary, (_BATCH, length), generator=generator)
    end = _find(config, "eos_token_id")
    if isinstance(end, int) and 0 <= end < vocabulary:  # where a model looks for the end of the text (CLIP)
        ids[ids == end] = low
        ids[:, -1] = end
    return ids


def _main(name: str, config: Any, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor | None:
    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    match name:
        case "input_ids":
            return _ids(config, generator)
        case "pixel_values" if isinstance(pretrained := getattr(config, "pretrained_cfg", None), Mapping):
            return noise(_BATCH, *picture_shape(pretrained))
        case "pixel_values":
            size = _find(config, "image_size") or 224
            height, width = size if isinstance(size, list | tuple) else (size, size)
            return noise(_BATCH, int(_find(config, "num_channels", "in_channels", "in_chans") or 3), height, width)
        case "input_values" if _find(config, "num_mel_bins") and _find(config, "max_length"):
            return noise(_BATCH, int(_find(config, "max_length")), int(_find(config, "num_mel_bins")))
        case "input_values":
            return noise(_BATCH, 6400)
        case "input_features":
            bins = int(_find(config, "num_mel_bins", "input_feat_per_channel", "feature_size") or 80)
            frames = _find(config, "max_source_positions")
            if getattr(config, "model_type", "") in ("whisper",):
                return noise(_BATCH, bins, 2 * int(frames))
            return noise(_BATCH, 64, bins)
    return None
