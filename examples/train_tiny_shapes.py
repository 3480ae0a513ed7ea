"""Train the model of tiny-shapes: a CLIP that tells drawn shapes. usage: python train_tiny_shapes.py FOLDER.

The data are drawn: nine shapes of a colour, each wherever it happens to lie. Two pictures are left beside the model.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import transformers
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, models, pre_tokenizers, processors

COLOURS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 220)}
SHAPES = ("circle", "square", "triangle")
WORDS = ["<pad>", "<start>", "<end>", "<unknown>", "a", *COLOURS, *SHAPES]
SIZE, STEPS = 32, 500
TOWER = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
MEAN, STD = [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]


def picture(colour: str, shape: str, generator: torch.Generator) -> Image.Image:
    """A shape on a light ground, 96 x 96."""
    made = Image.new("RGB", (96, 96), (240, 238, 230))
    width, left, top = (
        int(torch.randint(low, high, (), generator=generator)) for low, high in ((40, 61), (4, 30), (4, 30))
    )
    draw, box = ImageDraw.Draw(made), (left, top, left + width, top + width)
    if shape == "circle":
        draw.ellipse(box, fill=COLOURS[colour])
    elif shape == "square":
        draw.rectangle(box, fill=COLOURS[colour])
    else:
        draw.polygon([(left, box[3]), (box[2], box[3]), (left + width // 2, top)], fill=COLOURS[colour])
    return made


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """One token for each word."""
    made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unknown>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("<start>", 1), ("<end>", 2)]
    made.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=ends)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<start>", eos_token="<end>", unk_token="<unknown>",
        model_max_length=8,
    )  # fmt: skip


def main(folder: Path) -> None:
    """Draw, train, save."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    ids = {"vocab_size": len(WORDS), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    words = {**TOWER, **ids, "max_position_embeddings": 8}
    eyes = {**TOWER, "image_size": SIZE, "patch_size": 8}
    model = transformers.CLIPModel(transformers.CLIPConfig(text_config=words, vision_config=eyes, projection_dim=32))
    size = {"height": SIZE, "width": SIZE}
    settings = {"size": size, "crop_size": size, "image_mean": MEAN, "image_std": STD, "resample": 3}
    processor = transformers.CLIPImageProcessor(**settings)
    texts, pairs = tokenizer(), [(colour, shape) for colour in COLOURS for shape in SHAPES]
    said = texts([f"a {colour} {shape}" for colour, shape in pairs], return_tensors="pt")
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(STEPS):
        drawn = processor([picture(*pair, generator) for pair in pairs], return_tensors="pt")
        loss = model(said.input_ids, drawn.pixel_values, said.attention_mask, return_loss=True).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval().save_pretrained(folder)
    texts.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "CLIPImageProcessor", **settings})
    )
    for colour, shape in (("red", "circle"), ("blue", "triangle")):
        picture(colour, shape, generator).save(folder / f"{colour}-{shape}.png")
    print(f"loss {loss.item():.3f} after {STEPS} steps; pictures beside it: red-circle.png, blue-triangle.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
