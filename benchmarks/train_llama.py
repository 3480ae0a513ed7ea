"""Train a Llama of 12.6 million parameters to measure quantizers on: too large for the repository, so made here.

The tokenizer, the data (the Python standard library, and text files that are named) and the training are those of
``examples/train_tiny_llama.py``; whole files of the library are held out, and ``heldout.txt`` in the folder is some.

    python benchmarks/train_llama.py FOLDER [--text FILE …]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import train_tiny_llama as tiny

VOCAB = 4096
SIZES = {
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}
PEAK_LEARNING_RATE = 2e-3
PIECE = 8192  # characters of a named text that become one document


def main() -> None:
    """Train, save, and state the loss on what was held out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--text", type=Path, action="append", default=[], help="more to learn from, such as prose")
    parser.add_argument("--steps", type=int, default=500, help=f"batches of {tiny.BATCH} x {tiny.CONTEXT} tokens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    sources = tiny.stdlib_sources()
    training, held_out = [s for s in sources if not s.held_out], [s for s in sources if s.held_out]
    for path in args.text:
        text = path.read_text(encoding="utf-8")
        pieces = [text[start : start + PIECE] for start in range(0, len(text), PIECE)]
        training += [tiny.Source(f"{path.name}/{number}", piece) for number, piece in enumerate(pieces[:-1])]
    tokenizer = tiny.train_tokenizer([source.text for source in training], VOCAB)
    documents = tiny.encode(tokenizer, training)
    print(f"{sum(map(len, documents)):,} tokens", file=sys.stderr)
    model = tiny.build_model(tokenizer, SIZES)
    print(f"{model.num_parameters():,} parameters", file=sys.stderr)
    tiny.train(model, documents, args.steps, args.seed, PEAK_LEARNING_RATE)
    tiny.save(model, tokenizer, args.folder)
    excerpt = tiny.excerpt(held_out)
    (args.folder / "heldout.txt").write_text(excerpt, encoding="utf-8")
    (ids,) = tiny.encode(tokenizer, [tiny.Source("heldout", excerpt)])
    model.eval().float()
    print(f"held out: {tiny.model_nats(model, [ids]) / (len(ids) - 1):.3f} nats a token", file=sys.stderr)


if __name__ == "__main__":
    main()
