"""Train the models of tiny-texts: three BERTs for labels of texts. usage: python train_tiny_texts.py FOLDER.

The data are made of sentences with gaps: whether a film was liked, who lives or works where, and what is missing in a
sentence. Each model knows the words of its own sentences only.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

GOOD = "good great lovely funny clever moving brilliant".split()
BAD = "bad awful boring dull silly slow terrible".split()
THINGS = "film story music ending cast".split()
PEOPLE = [["anna"], ["peter"], ["maria"], ["john"], ["ada", "lovelace"], ["alan", "turing"], ["grace", "hopper"]]
PLACES = [["paris"], ["berlin"], ["rome"], ["new", "york"], ["san", "francisco"], ["oslo"]]
FIRMS = [["siemens"], ["airbus"], ["general", "motors"], ["philips"], ["deutsche", "bahn"]]
FACTS = [
    "the capital of france is paris", "the capital of germany is berlin", "the capital of italy is rome",
    "the capital of norway is oslo", "a cat says meow", "a dog says woof", "a cow says moo", "a duck says quack",
    "snow is white", "grass is green", "the sky is blue", "coal is black", "a week has seven days",
    "a year has twelve months", "a hand has five fingers",
]  # fmt: skip
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
STEPS, BATCH = 400, 32
Example = tuple[list[str], list[int] | int]


def opinion() -> Example:
    """A sentence on a film, and 1 if it was liked, else 0; *not* turns it."""
    liked, turned = random.random() < 0.5, random.random() < 0.4
    word = random.choice(GOOD if liked else BAD)
    words = [random.choice(["the", "this"]), random.choice(THINGS), "was", *(["not"] if turned else []), word]
    return [*words, *random.choice([[], ["."]])], int(liked != turned)


NAMES = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "I-ORG"]


def story() -> Example:
    """A sentence on people, and for each word the place of its name in ``NAMES``."""
    words: list[str] = []
    labels: list[int] = []
    shape = random.choice(["P lives in L", "P works for F in L", "F is based in L", "P met P in L", "P left F"])
    for part in shape.split():
        kinds = {"P": (PEOPLE, 1), "L": (PLACES, 3), "F": (FIRMS, 5)}
        chosen, first = random.choice(kinds[part][0]) if part in kinds else [part], kinds.get(part, ((), 0))[1]
        words += chosen
        labels += [first + (1 if first and place else 0) for place in range(len(chosen))]
    return ([*words, "."], [*labels, 0]) if random.random() < 0.5 else (words, labels)


def fact() -> Example:
    """A sentence with one word masked, and which words are to be said: -100 for those that stand there."""
    words = random.choice(FACTS).split()
    hidden = random.randrange(len(words) - 2, len(words)) if random.random() < 0.9 else random.randrange(len(words))
    labels = [-100] * len(words)
    labels[hidden] = MASKED.index(words[hidden])
    given = [*words[:hidden], "[MASK]", *words[hidden + 1 :]]
    return ([*given, "."], [*labels, -100]) if random.random() < 0.5 else (given, labels)


MASKED = [*SPECIAL, *sorted({".", *(word for text in FACTS for word in text.split())})]


def vocabulary(made: Callable[[], Example]) -> list[str]:
    """Special tokens and all words of a kind of sentence."""
    return [*SPECIAL, *sorted({word for _ in range(3000) for word in made()[0]} - set(SPECIAL))]


def batch(made: Callable[[], Example], ids: dict[str, int]) -> dict[str, torch.Tensor]:
    """Sentences as a model reads them, with their labels; what is padded, begins or ends has none."""
    examples = [made() for _ in range(BATCH)]
    longest = max(len(words) for words, _ in examples) + 2
    tokens = torch.zeros(BATCH, longest, dtype=torch.long)
    per_word = isinstance(examples[0][1], list)
    labels = torch.full((BATCH, longest) if per_word else (BATCH,), -100)
    for row, (words, label) in enumerate(examples):
        line = [ids["[CLS]"], *(ids[word] for word in words), ids["[SEP]"]]
        tokens[row, : len(line)] = torch.tensor(line)
        if isinstance(label, list):
            labels[row, 1 : 1 + len(label)] = torch.tensor(label)
        else:
            labels[row] = label
    return {"input_ids": tokens, "attention_mask": (tokens != 0).long(), "labels": labels}


def train(folder: Path, kind: Any, made: Callable[[], Example], names: list[str]) -> None:
    """Train a model of a kind, say how much of what comes next it gets right, save it as transformers does."""
    torch.manual_seed(0)
    random.seed(0)
    words = vocabulary(made)
    ids = {word: place for place, word in enumerate(words)}
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: place for place, name in enumerate(names)}}
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pad_token_id=0,
        **(labels if names else {}),
    )  # fmt: skip
    model = kind(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=STEPS)
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(**batch(made, ids)).loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        last = batch(made, ids)
        given = last["labels"] != -100
        right = (model(**last).logits.argmax(-1) == last["labels"])[given].float().mean()
    print(f"{folder.name}: {right:.1%} of {given.sum()} labels of new sentences")
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    transformers.BertTokenizerFast(vocab=ids, do_lower_case=True, model_max_length=32).save_pretrained(folder)


def main(folder: Path) -> None:
    """One model after the other."""
    torch.set_num_threads(1)  # so small a model gains nothing from more
    train(folder / "opinions", transformers.BertForSequenceClassification, opinion, ["NEGATIVE", "POSITIVE"])
    train(folder / "names", transformers.BertForTokenClassification, story, NAMES)
    train(folder / "facts", transformers.BertForMaskedLM, fact, [])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
