"""Train the model of tiny-numbers: a T5 that translates numbers. usage: python train_tiny_numbers.py FOLDER.

The data are the numbers up to 999 in English and in German, both ways; a tenth of them is held out.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

ENGLISH = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen".split(),
    "twenty thirty forty fifty sixty seventy eighty ninety".split(),
)
GERMAN = (
    "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn siebzehn "
    "achtzehn neunzehn".split(),
    "zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig".split(),
)
LARGEST, STEPS, BATCH = 999, 800, 64
SPECIAL = ["<pad>", "</s>", "<unk>"]
PREFIXES = ("translate English to German: ", "translate German to English: ")


def english(number: int) -> str:
    """As it is said: three hundred and forty-two."""
    ones, tens = ENGLISH
    if number < 20:
        return ones[number]
    if number < 100:
        return tens[number // 10 - 2] + (f"-{ones[number % 10]}" if number % 10 else "")
    rest = f" and {english(number % 100)}" if number % 100 else ""
    return f"{ones[number // 100]} hundred{rest}"


def german(number: int) -> str:
    """As it is said: dreihundertzweiundvierzig, the ones before the tens."""
    ones, tens = GERMAN
    joined = ["ein" if one == "eins" else one for one in ones]
    if number < 20:
        return ones[number]
    if number < 100:
        before = f"{joined[number % 10]}und" if number % 10 else ""
        return before + tens[number // 10 - 2]
    return f"{joined[number // 100]}hundert{german(number % 100) if number % 100 else ''}"


def pairs(numbers: list[int]) -> list[tuple[str, str]]:
    """What is read and what is to be written, both ways."""
    both = [(english(number), german(number)) for number in numbers]
    return [pair for one, other in both for pair in ((PREFIXES[0] + one, other), (PREFIXES[1] + other, one))]


def tokenizer(texts: list[str]) -> transformers.PreTrainedTokenizerFast:
    """Pieces of words, as often as they occur; a text ends with ``</s>``."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=160, special_tokens=SPECIAL, show_progress=False, min_frequency=20)
    )
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=64
    )


def main(folder: Path) -> None:
    """Train, say how many numbers that it has not seen it translates, save it as transformers does."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # so small a model gains nothing from more
    held_out = [number for number in range(100, LARGEST + 1) if number * 37 % 101 < 10]
    seen, unseen = pairs([number for number in range(LARGEST + 1) if number not in held_out]), pairs(held_out)
    words = tokenizer([text for pair in seen for text in pair])
    config = transformers.T5Config(
        vocab_size=len(words), d_model=48, d_kv=12, d_ff=96, num_layers=2, num_heads=4, dropout_rate=0.0,
        relative_attention_num_buckets=16, relative_attention_max_distance=32,
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
    )  # fmt: skip
    model = transformers.T5ForConditionalGeneration(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=STEPS)
    for _ in range(STEPS):
        batch = [seen[place] for place in torch.randint(len(seen), (BATCH,)).tolist()]
        read = words([text for text, _ in batch], padding=True, return_tensors="pt")
        said = words([text for _, text in batch], padding=True, return_tensors="pt")
        labels = said.input_ids.masked_fill(said.attention_mask == 0, -100)
        loss = model(input_ids=read.input_ids, attention_mask=read.attention_mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    read = words([text for text, _ in unseen], padding=True, return_tensors="pt")
    written = model.generate(read.input_ids, attention_mask=read.attention_mask, max_new_tokens=24, do_sample=False)
    said = words.batch_decode(written, skip_special_tokens=True)
    right = sum(one == wanted for one, (_, wanted) in zip(said, unseen, strict=True))
    print(f"{right / len(unseen):.1%} of {len(unseen)} translations of numbers that it has not seen; loss {loss:.4f}")
    model.generation_config.max_new_tokens = 24
    model.save_pretrained(folder)
    words.save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
