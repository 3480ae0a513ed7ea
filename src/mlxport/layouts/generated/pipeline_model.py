"""The models of a pipeline of diffusers as one module without weights, and where its parameters come from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from mlxport.errors import ConfigError, UnsupportedError
from mlxport.layouts.generated import hf_model
from mlxport.layouts.generated.diffusers_library import needed_diffusers
from mlxport.layouts.generated.hf_weights import Sources, assign
from mlxport.source.diffusers_folder import COMPONENTS, component_of
from mlxport.types import Checkpoint

__all__ = ["PipelineModel", "empty_pipeline"]

_IN_FLOAT32 = ("vae",)
"""What overflows in half precision: pictures come out black."""
_CLASSES = ("AutoencoderKL", "UNet2DConditionModel")
_OLD_ATTENTION = re.compile(r"(?P<path>.*attentions\.\d+)\.(?P<name>query|key|value|proj_attn)\.(?P<leaf>\w+)")
_NEW_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of before diffusers 0.13, in which Stable Diffusion 1.5 was published (modeling_utils.py,
``_convert_deprecated_attention_blocks``)."""


class PipelineModel(nn.Module):  # type: ignore[misc]
    """Models side by side, each as the attribute of its name.

    Attributes:
        config: ``model_type`` of the pipeline.
    """

    def __init__(self, model_type: str, models: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.config = SimpleNamespace(model_type=model_type)
        for name, model in models.items():
            self.add_module(name, model)

    def weight_sources(self, checkpoint: Checkpoint) -> Sources:
        """Where each parameter comes from, for ``hf_weights.assign``."""
        return _sources(self, checkpoint)

    def tie_weights(self) -> None:
        """Let each model tie its own."""
        for model in self.children():
            if isinstance(model, PreTrainedModel):
                model.tie_weights()


def empty_pipeline(checkpoint: Checkpoint, *, dtype: torch.dtype, attention: str) -> PipelineModel:
    """A pipeline's models in eval mode, parameters taking no memory, those of pictures in float32 whatever ``dtype``.

    Args:
        checkpoint: The opened source.
        dtype: Of the other parameters.
        attention: As of ``hf_model.empty_model``.

    Raises:
        UnsupportedError: A model is of a class that is not read, or diffusers is not installed.
        ConfigError: One cannot be built by its config.
    """
    models: dict[str, nn.Module] = {}
    for name, config in checkpoint.config[COMPONENTS].items():
        wanted = torch.float32 if name in _IN_FLOAT32 else dtype
        if "_class_name" in config:
            models[name] = _of_diffusers(checkpoint, name, wanted, attention)
        else:
            models[name] = hf_model.empty_model(component_of(checkpoint, name), dtype=wanted, attention=attention)
    made = PipelineModel(str(checkpoint.config["model_type"]), models)
    made.eval()
    return made


def _of_diffusers(checkpoint: Checkpoint, name: str, dtype: torch.dtype, attention: str) -> nn.Module:
    from accelerate import init_empty_weights

    diffusers = needed_diffusers(checkpoint.location)
    config = checkpoint.config[COMPONENTS][name]
    kind = str(config["_class_name"])
    where = f"{checkpoint.location}/{name}/config.json"
    if kind not in _CLASSES:
        hint = (
            f"port it by a function that returns it: mlxport port FILE.py:FACTORY DST; read are {', '.join(_CLASSES)}"
        )
        raise UnsupportedError(f"{where}: models of class {kind[:80]!r} are not read", hint=hint)
    try:
        with init_empty_weights(include_buffers=False):
            model = getattr(diffusers, kind).from_config(dict(config))
    except Exception as error:  # diffusers' own code, whatever the config makes of it
        what = f"{where}: diffusers cannot build the model that it describes: {type(error).__name__}: {error}"
        raise ConfigError(what, hint="get config.json again from where the weights are from") from error
    if attention == "eager":
        model.set_attn_processor(diffusers.models.attention_processor.AttnProcessor())
    return nn.Module.to(model, dtype)  # diffusers' own warns of what loading would keep in float32


def _sources(model: PipelineModel, checkpoint: Checkpoint) -> Sources:
    """Where each parameter of the models comes from: those of transformers by its rules, others by their names."""
    found = Sources()
    for name, part in model.named_children():
        own = component_of(checkpoint, name)
        one = assign(part, own) if isinstance(part, PreTrainedModel) else _by_name(part, own)
        if one.groups:
            made = one.groups[0].first
            raise UnsupportedError(
                f"{checkpoint.location}: {name}.{made} is made of several tensors, which is not read"
            )
        found.plain |= {f"{name}.{key}": ref for key, ref in one.plain.items()}
        found.left += one.left
    return found


def _by_name(model: Any, checkpoint: Checkpoint) -> Sources:
    known, found = model.state_dict(), Sources()
    for name, ref in checkpoint.tensors.items():
        if name not in known and (match := _OLD_ATTENTION.fullmatch(name)):
            name = f"{match['path']}.{_NEW_ATTENTION[match['name']]}.{match['leaf']}"
        if name in known:
            found.plain[name] = ref
        else:
            found.left.append(ref.name)
    return found
