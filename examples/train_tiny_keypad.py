"""Train the model of tiny-keypad: a Wav2Vec2 that hears dialled numbers. usage: python train_tiny_keypad.py FOLDER.

The data are made: each key of a telephone is two tones at once (DTMF), of any length and loudness, with noise between.
Since it is known when a key is pressed, each moment is trained to name its key, or the blank of CTC between two.
"""

from __future__ import annotations

import json
import sys
import wave
from pathlib import Path

import numpy as np
import torch
import transformers

RATE = 8000  # samples a second, as telephones have
ROWS, COLUMNS, KEYS = (697, 770, 852, 941), (1209, 1336, 1477), ("123", "456", "789", "*0#")
TONES = {key: (ROWS[r], COLUMNS[c]) for r, keys in enumerate(KEYS) for c, key in enumerate(keys)}
KERNELS, STRIDES = [16, 8, 4], [4, 4, 5]
MOMENT, WINDOW = 80, 16 + 7 * 4 + 3 * 16  # samples from one moment to the next, and those that it hears
STEPS, BATCH = 300, 16


def dialled(keys: str, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The sound of keys that are pressed one after the other, float32, and the key of each sample, "" for none."""
    sounds, pressed = [np.zeros(int(random.uniform(0.05, 0.15) * RATE))], []
    for key in keys:
        times = np.arange(int(random.uniform(0.07, 0.14) * RATE)) / RATE
        tones = sum(np.sin(2 * np.pi * tone * times + random.uniform(0, 6)) for tone in TONES[key])
        sounds += [tones * random.uniform(0.1, 0.4), np.zeros(int(random.uniform(0.05, 0.12) * RATE))]
    for place, sound in enumerate(sounds):
        pressed += [keys[place // 2] if place % 2 else ""] * len(sound)
    samples = np.concatenate(sounds)
    return (samples + random.normal(0, 0.01, len(samples))).astype(np.float32), np.array(pressed)


def number(random: np.random.Generator) -> str:
    """Keys in any order."""
    return "".join(random.choice([*TONES], int(random.integers(3, 9))))


def save_sound(path: Path, samples: np.ndarray) -> None:
    """A WAV of 16 bits."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes((samples * 32767).astype("<i2").tobytes())


def save_processor(folder: Path) -> transformers.Wav2Vec2Processor:
    """A letter for each key, as the original's vocabulary; the sound is scaled to its own loudness."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *TONES]
    (folder / "vocab.json").write_text(json.dumps({letter: place for place, letter in enumerate(letters)}))
    extractor = transformers.Wav2Vec2FeatureExtractor(sampling_rate=RATE, do_normalize=True)
    made = transformers.Wav2Vec2Processor(extractor, transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json")))
    made.save_pretrained(folder)
    return made


def batch(processor: transformers.Wav2Vec2Processor, random: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Sounds [sounds, samples], and the letter of each moment that a model hears [sounds, moments]."""
    made = [dialled(number(random), random) for _ in range(BATCH)]
    heard = processor([sound for sound, _ in made], sampling_rate=RATE, padding=True, return_tensors="pt").input_values
    middles = np.arange((heard.shape[1] - WINDOW) // MOMENT + 1) * MOMENT + WINDOW // 2
    ids = processor.tokenizer.get_vocab()
    labels = torch.zeros(BATCH, len(middles), dtype=torch.long)  # the blank, which is what is padded too
    for row, (_, pressed) in enumerate(made):
        letters = [ids[key] if key else 0 for key in pressed[middles[middles < len(pressed)]]]
        labels[row, : len(letters)] = torch.tensor(letters)
    return heard, labels


def main(folder: Path) -> None:
    """Train, say how many numbers that it has not heard it writes down, save it as transformers does, with a sound."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # so small a model gains nothing from more
    random, processor = np.random.default_rng(0), save_processor(folder)
    config = transformers.Wav2Vec2Config(
        vocab_size=len(processor.tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=4,
        intermediate_size=64, conv_dim=[32, 32, 32], conv_kernel=KERNELS, conv_stride=STRIDES,
        num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=4, hidden_dropout=0.0, attention_dropout=0.0,
        feat_proj_dropout=0.0, activation_dropout=0.0, final_dropout=0.0, layerdrop=0.0, apply_spec_augment=False,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = transformers.Wav2Vec2ForCTC(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=STEPS)
    for _ in range(STEPS):
        heard, labels = batch(processor, random)
        loss = torch.nn.functional.cross_entropy(model(heard).logits.transpose(1, 2), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    right, unheard = 0, [number(random) for _ in range(200)]
    for keys in unheard:
        heard = processor(dialled(keys, random)[0], sampling_rate=RATE, return_tensors="pt").input_values
        right += processor.decode(model(heard).logits[0].argmax(-1)) == keys
    print(f"{right / len(unheard):.1%} of {len(unheard)} numbers that it has not heard; loss {loss:.4f}")
    model.save_pretrained(folder)
    save_sound(folder / "call.wav", dialled("0613*7429#", random)[0])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
