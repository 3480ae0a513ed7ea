"""The modules of mlx-whisper's model as far as weights go: their names, shapes and kinds, nothing that computes.

mlx-whisper itself needs torch, numba and scipy to be imported; converting needs none of them.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mlxport.layouts.mlx_whisper.dimensions import Dimensions

__all__ = ["WhisperSkeleton"]


class _Attention(nn.Module):  # type: ignore[misc]
    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)


class _Block(nn.Module):  # type: ignore[misc]
    def __init__(self, width: int, crosses: bool) -> None:
        super().__init__()
        self.attn = _Attention(width)
        self.attn_ln = nn.LayerNorm(width)
        if crosses:
            self.cross_attn = _Attention(width)
            self.cross_attn_ln = nn.LayerNorm(width)
        self.mlp1 = nn.Linear(width, 4 * width)
        self.mlp2 = nn.Linear(4 * width, width)
        self.mlp_ln = nn.LayerNorm(width)


class _Encoder(nn.Module):  # type: ignore[misc]
    def __init__(self, sizes: Dimensions) -> None:
        super().__init__()
        width = sizes.n_audio_state
        self.conv1 = nn.Conv1d(sizes.n_mels, width, kernel_size=3)
        self.conv2 = nn.Conv1d(width, width, kernel_size=3)
        self.blocks = [_Block(width, False) for _ in range(sizes.n_audio_layer)]
        self.ln_post = nn.LayerNorm(width)


class _Decoder(nn.Module):  # type: ignore[misc]
    def __init__(self, sizes: Dimensions) -> None:
        super().__init__()
        width = sizes.n_text_state
        self.token_embedding = nn.Embedding(sizes.n_vocab, width)
        self.positional_embedding = mx.zeros((sizes.n_text_ctx, width))
        self.blocks = [_Block(width, True) for _ in range(sizes.n_text_layer)]
        self.ln = nn.LayerNorm(width)


class WhisperSkeleton(nn.Module):  # type: ignore[misc]
    """``mlx_whisper.whisper.Whisper`` without its calls.

    Args:
        sizes: Of the model.
        heads: Pairs of layer and head whose attention follows the sound, int32, [heads, 2].
    """

    def __init__(self, sizes: Dimensions, heads: mx.array) -> None:
        super().__init__()
        self.encoder = _Encoder(sizes)
        self.decoder = _Decoder(sizes)
        self.alignment_heads = heads
