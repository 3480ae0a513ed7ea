"""Make the model of tiny-codec: a DAC of random weights. usage: python make_tiny_codec.py FOLDER.

It shows the commands, and that both sides compute the same; how codecs sound it does not show. Weights are as large as
lets codes differ from one frame to the next.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import transformers

RATE = 8000
CONFIG = transformers.DacConfig(
    encoder_hidden_size=4, downsampling_ratios=[2, 4, 5], decoder_hidden_size=32, n_codebooks=4, codebook_size=64,
    codebook_dim=6, sampling_rate=RATE,
)  # fmt: skip


def main(folder: Path) -> None:
    """Save model and feature extractor."""
    generator = torch.Generator().manual_seed(0)
    model = transformers.DacModel(CONFIG).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and parameter.shape[0] > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5)
    model.save_pretrained(folder)
    transformers.DacFeatureExtractor(sampling_rate=RATE, hop_length=40).save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
