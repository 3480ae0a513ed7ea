"""Pipelines of diffusion, as data: what reads a prompt, what takes noise away, and both ways of pictures.

Pictures are latents between: a part gives or takes them as what takes noise away does, scaled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlxport.layouts.generated.model_parts import Part, PartedModel

if TYPE_CHECKING:
    import torch

    from mlxport.types import Checkpoint

__all__ = ["DIFFUSION"]

_USAGE = """\
## Use

```python
import mlxport

model = mlxport.load("PATH")
states = model.text_encoder(input_ids=ids)
noise = model.unet(sample=latents, timestep=timestep, encoder_hidden_states=states)
pictures = model.vae_decode(latents=latents)  # [batch, 3, height, width], from -1 to 1
```

`PATH` is this folder. Each part is a file that needs nothing but `mlx`, with a `load` of its own. Latents are
[batch, channels, height, width]; the exact options, versions and hashes of source and output are in `mlxport.json`."""
_TIMES = (601.0, 17.5)


def _noise(*shape: int, like: Any) -> torch.Tensor:
    import torch

    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(like.dtype)


def _ids(encoder: Any) -> dict[str, Any]:
    """Two prompts as a tokenizer gives them: of the one length that these models read."""
    import torch

    config = encoder.config
    length = config.max_position_embeddings
    ids = torch.randint(3, config.vocab_size - 2, (2, length), generator=torch.Generator().manual_seed(0))
    ids[:, -1] = config.vocab_size - 1  # where the end of the text is looked for
    ids[1, length // 2 :] = config.vocab_size - 1
    return {"input_ids": ids}


def _noisy(model: Any) -> dict[str, Any]:
    import torch

    unet = model.unet
    config = unet.config
    least = 2 ** (len(config.block_out_channels) - 1)
    made = {
        "sample": _noise(2, config.in_channels, 2 * least, 3 * least, like=unet),
        "timestep": torch.tensor(_TIMES),
        "encoder_hidden_states": _noise(2, 7, config.cross_attention_dim, like=unet),
    }
    if config.addition_embed_type == "text_time":
        width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        made["text_embeds"] = _noise(2, width, like=unet)
        sizes = torch.tensor([[96.0, 64.0, 0.0, 0.0, 96.0, 64.0], [64.0, 64.0, 8.0, 0.0, 64.0, 64.0]])
        made["time_ids"] = sizes.to(unet.dtype)
    return made


def _latents(model: Any) -> dict[str, Any]:
    return {"latents": _noise(2, model.vae.config.latent_channels, 4, 6, like=model.vae)}


def _pixels(model: Any) -> dict[str, Any]:
    factor = 2 ** (len(model.vae.config.block_out_channels) - 1)
    return {"pixel_values": _noise(2, model.vae.config.in_channels, 4 * factor, 6 * factor, like=model.vae)}


def _last_states(model: Any, input_ids: Any) -> Any:
    return model.text_encoder(input_ids=input_ids).last_hidden_state


def _states_before(encoder: Any, input_ids: Any) -> Any:
    """States before the last layer, as SDXL reads them."""
    return encoder(input_ids=input_ids, output_hidden_states=True)


def _first_of_two(model: Any, input_ids: Any) -> Any:
    return _states_before(model.text_encoder, input_ids).hidden_states[-2]


def _second_of_two(model: Any, input_ids: Any) -> dict[str, Any]:
    found = _states_before(model.text_encoder_2, input_ids)
    return {"hidden_states": found.hidden_states[-2], "text_embeds": found.text_embeds}


def _unet(model: Any, text_embeds: Any = None, time_ids: Any = None, **inputs: Any) -> Any:
    added = {} if time_ids is None else {"added_cond_kwargs": {"text_embeds": text_embeds, "time_ids": time_ids}}
    return model.unet(**inputs, **added, return_dict=False)[0]


def _decode(model: Any, latents: Any) -> Any:
    config = model.vae.config
    return model.vae.decode(latents / config.scaling_factor + _shift(config), return_dict=False)[0]


def _encode(model: Any, pixel_values: Any) -> dict[str, Any]:
    """Mean and spread of what stands for a picture: noise times the one, plus the other."""
    found, config = model.vae.encode(pixel_values, return_dict=False)[0], model.vae.config
    return {"mean": (found.mean - _shift(config)) * config.scaling_factor, "std": found.std * config.scaling_factor}


def _shift(config: Any) -> float:
    return getattr(config, "shift_factor", None) or 0.0


def _empty(checkpoint: Checkpoint, dtype: torch.dtype, attention: str) -> Any:
    from mlxport.layouts.generated.pipeline_model import empty_pipeline

    return empty_pipeline(checkpoint, dtype=dtype, attention=attention)


_ENCODE = Part("vae_encode", ("pixel_values",), _encode, example=_pixels)
_DECODE = Part("vae_decode", ("latents",), _decode, example=_latents)


def _diffusion(name: str, *parts: Part) -> PartedModel:
    return PartedModel(
        model_types=frozenset({name}),
        task="text-to-image",
        usage=_USAGE,
        parts=(*parts, _ENCODE, _DECODE),
        empty=_empty,
        quantized=("unet",),
    )


_UNET = ("sample", "timestep", "encoder_hidden_states")
DIFFUSION = (
    _diffusion(
        "StableDiffusionPipeline",
        Part("text_encoder", ("input_ids",), _last_states, example=lambda model: _ids(model.text_encoder)),
        Part("unet", _UNET, _unet, example=_noisy),
    ),
    _diffusion(
        "StableDiffusionXLPipeline",
        Part("text_encoder", ("input_ids",), _first_of_two, example=lambda model: _ids(model.text_encoder)),
        Part("text_encoder_2", ("input_ids",), _second_of_two, example=lambda model: _ids(model.text_encoder_2)),
        Part("unet", (*_UNET, "text_embeds", "time_ids"), _unet, example=_noisy),
    ),
)
