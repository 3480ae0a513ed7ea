"""Tiny random models of diffusers, with inputs for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

BLOCKS = {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8}


def _image(channels: int = 4, size: int = 16) -> Any:
    import torch

    return torch.randn(2, channels, size, size)


def _steps() -> Any:
    import torch

    return torch.tensor([3, 7])


def _text(length: int = 5, width: int = 32) -> Any:
    import torch

    return torch.randn(2, length, width)


# Class of diffusers, fields of its constructor, inputs of its forward.
CASES: dict[str, tuple[str, dict[str, Any], Callable[[], dict[str, Any]]]] = {
    "unet2d": (
        "UNet2DModel",
        {**BLOCKS, "in_channels": 3, "out_channels": 3, "attention_head_dim": 8,
         "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")},
        lambda: {"sample": _image(3), "timestep": _steps()},
    ),
    "unet2d-condition": (
        "UNet2DConditionModel",
        {**BLOCKS, "cross_attention_dim": 32, "attention_head_dim": 8,
         "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
         "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")},
        lambda: {"sample": _image(), "timestep": _steps(), "encoder_hidden_states": _text()},
    ),
    "unet2d-condition-xl": (
        "UNet2DConditionModel",
        {**BLOCKS, "cross_attention_dim": 32, "attention_head_dim": (2, 4), "use_linear_projection": True,
         "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
         "projection_class_embeddings_input_dim": 80, "transformer_layers_per_block": (1, 2),
         "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
         "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")},
        lambda: {"sample": _image(), "timestep": _steps(), "encoder_hidden_states": _text(),
                 "added_cond_kwargs": {"text_embeds": _text()[:, 0], "time_ids": _text(6)[:, :, 0]}},
    ),
    "autoencoder-kl": (
        "AutoencoderKL",
        {**BLOCKS, "latent_channels": 4, "down_block_types": ("DownEncoderBlock2D",) * 2,
         "up_block_types": ("UpDecoderBlock2D",) * 2},
        lambda: {"sample": _image(3, 32)},
    ),
    "autoencoder-tiny": (
        "AutoencoderTiny",
        {"encoder_block_out_channels": (16, 16), "decoder_block_out_channels": (16, 16),
         "num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)},
        lambda: {"sample": _image(3, 32)},
    ),
    "vq-model": (
        "VQModel",
        {**BLOCKS, "latent_channels": 4, "num_vq_embeddings": 16, "down_block_types": ("DownEncoderBlock2D",) * 2,
         "up_block_types": ("UpDecoderBlock2D",) * 2},
        lambda: {"sample": _image(3, 32)},
    ),
    "dit": (
        "DiTTransformer2DModel",
        {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8, "num_layers": 2,
         "sample_size": 16, "norm_num_groups": 4, "num_embeds_ada_norm": 10},
        lambda: {"hidden_states": _image(), "timestep": _steps(), "class_labels": _steps()},
    ),
    "pixart": (
        "PixArtTransformer2DModel",
        {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8, "num_layers": 2,
         "sample_size": 16, "norm_num_groups": 4, "cross_attention_dim": 16, "caption_channels": 32,
         "use_additional_conditions": False},
        lambda: {"hidden_states": _image(), "timestep": _steps(), "encoder_hidden_states": _text(),
                 "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}},
    ),
    "sd3": (
        "SD3Transformer2DModel",
        {"sample_size": 16, "patch_size": 2, "in_channels": 4, "num_layers": 2, "attention_head_dim": 8,
         "num_attention_heads": 2, "joint_attention_dim": 32, "caption_projection_dim": 16,
         "pooled_projection_dim": 32, "out_channels": 4, "pos_embed_max_size": 16},
        lambda: {"hidden_states": _image(), "timestep": _steps(), "encoder_hidden_states": _text(),
                 "pooled_projections": _text()[:, 0]},
    ),
    "flux": (
        "FluxTransformer2DModel",
        {"patch_size": 1, "in_channels": 4, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
         "num_attention_heads": 2, "joint_attention_dim": 32, "pooled_projection_dim": 32,
         "axes_dims_rope": (4, 4, 8)},
        lambda: {"hidden_states": _text(16, 4), "timestep": _steps() / 10, "encoder_hidden_states": _text(),
                 "pooled_projections": _text()[:, 0], "txt_ids": _text(5, 3)[0], "img_ids": _text(16, 3)[0]},
    ),
    "controlnet": (
        "ControlNetModel",
        {**BLOCKS, "cross_attention_dim": 32, "attention_head_dim": 8, "conditioning_embedding_out_channels": (16, 16),
         "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D")},
        lambda: {"sample": _image(), "timestep": _steps(), "encoder_hidden_states": _text(),
                 "controlnet_cond": _image(3, 32)},
    ),
    "unet1d": (
        "UNet1DModel",
        {"block_out_channels": (16, 32), "layers_per_block": 1, "in_channels": 4, "out_channels": 4,
         "time_embedding_type": "positional", "norm_num_groups": 8, "use_timestep_embedding": True,
         "down_block_types": ("DownResnetBlock1D", "DownResnetBlock1D"), "mid_block_type": "MidResTemporalBlock1D",
         "up_block_types": ("UpResnetBlock1D",), "out_block_type": "OutConv1DBlock", "act_fn": "swish"},
        lambda: {"sample": _image(4)[:, :, 0], "timestep": _steps()},
    ),
    "prior": (
        "PriorTransformer",
        {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "embedding_dim": 32,
         "num_embeddings": 5, "additional_embeddings": 4},
        lambda: {"hidden_states": _text()[:, 0], "timestep": _steps(), "proj_embedding": _text()[:, 1],
                 "encoder_hidden_states": _text()},
    ),
}  # fmt: skip


def make_model(name: str) -> Any:
    """The model with seeded random weights."""
    import diffusers
    import torch

    torch.manual_seed(0)
    class_name, fields, _ = CASES[name]
    model = getattr(diffusers, class_name)(**fields)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            noise = torch.randn(value.shape, generator=generator)
            if value.ndim >= 2:
                value.copy_(noise * min(0.3, value[0].numel() ** -0.5))
            else:
                value.add_(0.1 * noise)
    return model.eval()
