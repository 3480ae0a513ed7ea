"""Train the model of tiny-digits: a ResNet that reads handwritten digits. usage: python train_tiny_digits.py FOLDER.

The data are the UCI handwritten digits as scikit-learn carries them: 1,797 pictures of 8 x 8; every fifth is held out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from sklearn.datasets import load_digits

WORDS = "zero one two three four five six seven eight nine".split()
SIZE, EPOCHS = 16, 12
SETTINGS = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": SIZE, "width": SIZE},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 2,
}


def picture(pixels: np.ndarray) -> Image.Image:
    """A digit as a person sees it: dark on light, 96 x 96."""
    return Image.fromarray((255 - pixels * 255 / 16).astype(np.uint8)).resize((96, 96), Image.Resampling.BILINEAR)


def inputs(pictures: np.ndarray) -> torch.Tensor:
    """What the image processor makes of pictures, [pictures, 3, 16, 16]."""
    small = [picture(one).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR) for one in pictures]
    return torch.tensor(np.stack(small)).permute(0, 3, 1, 2) / 127.5 - 1


def main(folder: Path) -> None:
    """Train, say how well it reads what it has not seen, save it as transformers does, with one picture."""
    torch.manual_seed(0)
    digits = load_digits()
    held_out = np.arange(len(digits.images)) % 5 == 4
    x, y = inputs(digits.images), torch.tensor(digits.target)
    labels = dict(enumerate(WORDS))
    config = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", downsample_in_first_stage=False,
        image_size=SIZE, id2label=labels, label2id={word: index for index, word in labels.items()},
    )  # fmt: skip
    model = transformers.ResNetForImageClassification(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    train = torch.tensor(np.flatnonzero(~held_out))
    steps = EPOCHS * (len(train) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(EPOCHS):
        for batch in train[torch.randperm(len(train))][: len(train) // 64 * 64].split(64):
            optimizer.zero_grad()
            model(x[batch], labels=y[batch]).loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        right = (model(x[held_out]).logits.argmax(-1) == y[held_out]).float().mean()
    print(f"{right:.1%} of {held_out.sum()} pictures that it has not seen")
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(SETTINGS, indent=2) + "\n")
    shown = [index for index in np.flatnonzero(held_out) if digits.target[index] in (3, 7)][:2]
    for index in shown:
        picture(digits.images[index]).save(folder / f"{WORDS[digits.target[index]]}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
