"""Tiny pipelines of diffusers as publishers lay them out: Stable Diffusion 1.5, 2.1 and XL, of random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

LENGTH = 24  # tokens of a prompt, each a letter


def _random(model: Any) -> Any:
    """Weights as large as lets the prompt and the step count in the picture."""
    generator = torch.Generator().manual_seed(sum(map(ord, type(model).__name__)))
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.add_(0.1 * noise)
    return model.eval()


def _tokenizer() -> Any:
    """Letters of CLIP's alphabet, joined to nothing longer."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(
        vocab={word: index for index, word in enumerate(words)}, merges=[], model_max_length=LENGTH
    )


def _text(kind: str = "CLIPTextModel", act: str = "quick_gelu") -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=514, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=LENGTH, projection_dim=12, hidden_act=act, bos_token_id=512, eos_token_id=513,
    )  # fmt: skip
    return _random(getattr(transformers, kind)(config))


def _vae() -> Any:
    import diffusers

    return _random(diffusers.AutoencoderKL(
        block_out_channels=[8, 16], down_block_types=["DownEncoderBlock2D"] * 2, latent_channels=4, norm_num_groups=4,
        up_block_types=["UpDecoderBlock2D"] * 2, sample_size=16,
    ))  # fmt: skip


def _unet(cross: int, **given: Any) -> Any:
    import diffusers

    return _random(diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=8, norm_num_groups=4, cross_attention_dim=cross,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **given,
    ))  # fmt: skip


SCALED: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def save_sd15(folder: Path, **saving: Any) -> None:
    """As version 1.5: epsilon; its scheduler, PNDM, is none of ours."""
    import diffusers

    diffusers.StableDiffusionPipeline(
        vae=_vae(), text_encoder=_text(), tokenizer=_tokenizer(),
        unet=_unet(16, attention_head_dim=2),
        scheduler=diffusers.PNDMScheduler(**SCALED, skip_prk_steps=True), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder, **saving)  # fmt: skip


def save_sd21(folder: Path, **saving: Any) -> None:
    """As version 2.1: v-prediction by DDIM, linear projections."""
    import diffusers

    diffusers.StableDiffusionPipeline(
        vae=_vae(), text_encoder=_text(act="gelu"), tokenizer=_tokenizer(),
        unet=_unet(16, attention_head_dim=(2, 4), use_linear_projection=True),
        scheduler=diffusers.DDIMScheduler(
            **SCALED, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder, **saving)  # fmt: skip


def save_sdxl(folder: Path, **saving: Any) -> None:
    """As XL Turbo: two text encoders, sizes told, ancestral Euler."""
    import diffusers

    tokenizer = _tokenizer()
    diffusers.StableDiffusionXLPipeline(
        vae=_vae(), text_encoder=_text(), tokenizer=tokenizer, tokenizer_2=tokenizer,
        text_encoder_2=_text("CLIPTextModelWithProjection", "gelu"),
        unet=_unet(
            32, attention_head_dim=(2, 4), use_linear_projection=True, addition_embed_type="text_time",
            addition_time_embed_dim=4, projection_class_embeddings_input_dim=36, transformer_layers_per_block=(1, 2),
        ),
        scheduler=diffusers.EulerAncestralDiscreteScheduler(**SCALED, timestep_spacing="trailing"),
    ).save_pretrained(folder, **saving)  # fmt: skip


PIPELINES: dict[str, Callable[..., None]] = {"sd15": save_sd15, "sd21": save_sd21, "sdxl": save_sdxl}
