"""Train `examples/tiny-llama`, a real Llama small enough for a git repository, from the Python standard library.

It makes its own tokenizer and chat template, trains, saves bf16 weights in three shards, scores them on whole files
that were held out against a Kneser-Ney 3-gram over the same tokens, and writes the figures into the model's README.
The result depends on the Python version (its sources are the data) and on the versions of torch and transformers.

    python examples/train_tiny_llama.py
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import math
import platform
import random
import sys
import sysconfig
import textwrap
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).parent
VOCAB = 2048
CONTEXT = 512
BATCH = 4
STEPS = 3000
PEAK_LEARNING_RATE = 4e-3
SHARDS = 3
SIZES = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
HELDOUT_EXCERPT_BYTES = 12_000
BOS, EOS, PAD, IM_START, IM_END = SPECIAL = ["<|bos|>", "<|eos|>", "<|pad|>", "<|im_start|>", "<|im_end|>"]
# Other people's packages, tests, generated tables and this machine's build settings teach nothing.
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}
SKIPPED_PREFIXES = ("config-", "_sysconfigdata")
SKIPPED_FILES = {"html/entities.py"}
# GPT-2's words, but a line's end belongs to the line, as in Llama 3, so that a prompt may end with one.
WORDS = r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
ROUND_TRIPS = [
    "def f(x):\n\treturn  x  **  2\n\n\n",
    "  naïve café — “quotes” ’n all .  , !",
    "Привет, мир. 你好，世界。 こんにちは 안녕하세요 مرحبا नमस्ते שלום ไทย",
    "🙂👩‍👩‍👧‍👦🇺🇳 e\u0301 \u00a0\u200b\ufeff \x00\r\n",
]
CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
language: en
tags: [python, code]
---

# tiny-llama

A Llama of {parameters:,} parameters that writes text which looks like Python. It was trained on the standard library's
sources, takes {megabytes:.1f} MB, and is meant for trying converters and runtimes, not for writing programs: it is
small, but its figures move when something is computed wrongly, as those of random weights do not.

On {held_out_files} held-out files ({held_out_bytes:,} bytes, {held_out_tokens:,} tokens):

| | perplexity per token | bits per byte |
|---|---|---|
| this model, its bf16 weights | **{model_perplexity:.2f}** | **{model_bits:.3f}** |
| Kneser-Ney 3-gram over the same tokens, trained on the same files | {trigram_perplexity:.2f} | {trigram_bits:.3f} |
| this model, if a rope theta of 10000 were read for its {theta:.0f} | {wrong_perplexity:.2f} | {wrong_bits:.3f} |

These figures, this page, the model and `../heldout.txt` are made by

    python examples/train_tiny_llama.py --steps {steps} --seed {seed}

in {cpu_minutes:.0f} minutes of processor time on two threads, here with Python {python}, torch {torch}, transformers
{transformers}. Other versions give other figures: Python's own sources are the data.

- **Data**: {training_files} files of the standard library, {training_tokens:,} tokens, without tests and generated
  tables, and {chats:,} conversations made of their documented functions ({chat_tokens:,} tokens). Whole files are held
  out, one in twenty by the hash of the name. `../heldout.txt` is a small part of them.
- **Perplexity**: windows of {context} tokens that overlap by half, in float32; each file starts with `<|bos|>`, and
  every token after it counts. The 3-gram is interpolated, with modified Kneser-Ney discounts.
- **Architecture**: {config.num_hidden_layers} layers of width {config.hidden_size}, {config.num_attention_heads} heads
  for queries, {config.num_key_value_heads} for keys and values, an output layer of its own, a context of {context}
  tokens, {config.vocab_size} byte-level BPE tokens, from which any text comes back unchanged.
- **Chat**: ChatML. It knows one kind of request, "Write a function named …", and no facts.
- **Licence**: the weights are Apache-2.0; the training text, and so `../heldout.txt`, is part of Python, under the
  [PSF licence](https://docs.python.org/3/license.html).

What it makes of the first line here, drawn at temperature {temperature} (the likeliest tokens alone soon go in
circles):

```python
{prompt}{completion}
```

Its answer to "{chat}":

```python
{answer}
```
"""
SAMPLE_PROMPT = "def read_lines(path):\n"
SAMPLE_CHAT = "Write a function named get_value."
TEMPERATURE = 0.7


@dataclass(frozen=True)
class Source:
    """One file of the standard library: its path below the library's root, and its text."""

    name: str
    text: str

    @property
    def held_out(self) -> bool:
        """Whether the file is kept from training: one in twenty, by the hash of its name, so on every machine."""
        return int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:4], "big") % 20 == 0


def stdlib_sources() -> list[Source]:
    """The standard library's own `.py` files, in the order of their names."""
    root = Path(sysconfig.get_path("stdlib"))
    sources = []
    for path in root.rglob("*.py"):
        name = path.relative_to(root)
        if SKIPPED_FOLDERS & set(name.parts) or name.parts[0].startswith(SKIPPED_PREFIXES):
            continue
        if name.as_posix() not in SKIPPED_FILES:
            sources.append(Source(name.as_posix(), path.read_text(encoding="utf-8", errors="ignore")))
    return sorted((s for s in sources if s.text.strip()), key=lambda s: s.name)


def chats_from(source: Source) -> Iterator[list[dict[str, str]]]:
    """Conversations that ask for a documented function of `source` and answer with it."""
    lines = source.text.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source.text)):
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("__"):
            continue
        documentation = ast.get_docstring(node)
        code = textwrap.dedent("".join(lines[node.lineno - 1 : node.end_lineno])).rstrip("\n")
        if documentation and len(code) <= 1200:
            request = f"Write a function named {node.name}."
            summary = documentation.splitlines()[0]
            # Every other request carries what the function is for, so that both kinds mean something.
            if len(code) % 2 and len(summary) > 20:
                request = f"{request} {summary}"
            yield [{"role": "user", "content": request}, {"role": "assistant", "content": code}]


def train_tokenizer(texts: list[str], vocab: int = VOCAB) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `vocab` tokens: every byte is one, so any text goes through it and back unchanged."""
    backend = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(WORDS), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        extra_special_tokens=[IM_START, IM_END],
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def check_round_trips(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> None:
    """Raise ValueError where decoding an encoded text does not give it back exactly."""
    for text in texts:
        if (back := tokenizer.decode(tokenizer.encode(text, verbose=False))) != text:
            raise ValueError(f"the tokenizer turned {text[:80]!r} into {back[:80]!r}: it must give every text back")


def encode(tokenizer: PreTrainedTokenizerFast, sources: list[Source]) -> list[np.ndarray]:
    """The token ids of each file, begin and end marked."""
    rows = tokenizer([BOS + source.text + EOS for source in sources], verbose=False)["input_ids"]
    return [np.array(row, dtype=np.int64) for row in rows]


def encode_chats(tokenizer: PreTrainedTokenizerFast, sources: list[Source]) -> list[np.ndarray]:
    """The token ids of each conversation made from `sources`, as the chat template renders it."""
    chats = [chat for source in sources for chat in chats_from(source)]
    rows = [tokenizer.apply_chat_template(chat, tokenize=False) + EOS for chat in chats]
    return [np.array(row, dtype=np.int64) for row in tokenizer(rows, verbose=False)["input_ids"]]


def build_model(tokenizer: PreTrainedTokenizerFast, sizes: Mapping[str, int] = SIZES) -> LlamaForCausalLM:
    """An untrained Llama: grouped-query attention, every matrix a multiple of 128 wide, and a rope theta of its own."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        **sizes,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 50000.0},
        initializer_range=0.05,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(IM_END)],
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


def batches(documents: list[np.ndarray], seed: int) -> Iterator[torch.Tensor]:
    """Batches of packed token ids, `[BATCH, CONTEXT + 1]`, without end: each epoch in a new order, cut anew."""
    rng = random.Random(seed)
    while True:
        stream = np.concatenate(rng.sample(documents, len(documents)))
        stream = stream[rng.randrange(CONTEXT) :]
        rows = (len(stream) - 1) // CONTEXT
        order = rng.sample(range(rows), rows)
        for i in range(0, rows - BATCH + 1, BATCH):
            starts = [row * CONTEXT for row in order[i : i + BATCH]]
            yield torch.from_numpy(np.stack([stream[start : start + CONTEXT + 1] for start in starts]))


def learning_rate(step: int, steps: int, peak: float = PEAK_LEARNING_RATE) -> float:
    """A linear warm-up over the first twentieth of the steps, then a cosine down to nothing."""
    warmup = max(1, steps // 20)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def train(
    model: LlamaForCausalLM, documents: list[np.ndarray], steps: int, seed: int, peak: float = PEAK_LEARNING_RATE
) -> None:
    """Train `model` in place, with a line of progress on stderr every hundred steps."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if not any(p is m for m in matrices)]
    # In short trials Muon learned faster than AdamW; it is for hidden matrices only.
    optimizers = [
        torch.optim.Muon(matrices, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]
    model.train()
    started, recent = time.monotonic(), []
    for step, batch in zip(range(steps), batches(documents, seed), strict=False):
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = learning_rate(step, steps, peak)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        recent.append(loss.item())
        if len(recent) == 100 or step + 1 == steps:
            seconds = time.monotonic() - started
            print(f"step {step + 1}/{steps}  loss {np.mean(recent):.3f}  {seconds:.0f} s", file=sys.stderr, flush=True)
            recent.clear()


@torch.inference_mode()
def model_nats(model: LlamaForCausalLM, documents: list[np.ndarray]) -> float:
    """The sum of -log p over every token but the first of each document, by windows that overlap by half."""
    total, stride = 0.0, CONTEXT // 2
    for ids in documents:
        for start in range(0, max(1, len(ids) - 1 - stride), stride):
            window = torch.from_numpy(ids[start : start + CONTEXT + 1])[None]
            new = 0 if start == 0 else stride
            logits = model(input_ids=window[:, :-1]).logits[0, new:]
            total += torch.nn.functional.cross_entropy(logits, window[0, new + 1 :], reduction="sum").item()
    return total


def trigram_nats(training: np.ndarray, documents: list[np.ndarray], eos: int) -> float:
    """The same sum by an interpolated modified Kneser-Ney 3-gram (Chen and Goodman, 1999) counted on `training`."""
    padded = [np.concatenate([[eos], ids]) for ids in documents]
    query = np.concatenate([_ngrams(ids, 3) for ids in padded])
    trigrams = np.unique(_ngrams(training, 3), return_counts=True)
    # Lower orders count in how many contexts an n-gram was seen, not how often.
    bigrams = np.unique(trigrams[0] % VOCAB**2, return_counts=True)
    unigrams = np.bincount(bigrams[0] % VOCAB, minlength=VOCAB) + 1
    probability = (unigrams / unigrams.sum())[query % VOCAB]
    for order, (keys, counts) in ((2, bigrams), (3, trigrams)):
        n1, n2, n3, n4 = (np.count_nonzero(counts == k) for k in (1, 2, 3, 4))
        y = n1 / (n1 + 2 * n2)
        discounts = np.array([0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])[np.minimum(counts, 3)]
        contexts, member = np.unique(keys // VOCAB, return_inverse=True)
        wanted = query % VOCAB**order
        seen = _look_up(keys, counts - discounts, wanted)
        left_over = _look_up(contexts, np.bincount(member, discounts), wanted // VOCAB)
        total = _look_up(contexts, np.bincount(member, counts), wanted // VOCAB)
        probability = np.where(total > 0, (seen + left_over * probability) / np.maximum(total, 1), probability)
    return float(-np.log(probability).sum())


def _ngrams(ids: np.ndarray, order: int) -> np.ndarray:
    """Each run of `order` tokens as one number, the newest token in the lowest digit."""
    windows = np.lib.stride_tricks.sliding_window_view(ids, order)
    return windows @ (VOCAB ** np.arange(order - 1, -1, -1))


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The value of each wanted key in a sorted table, 0 where it has none."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0.0)


@torch.inference_mode()
def complete(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompt: str) -> str:
    """What the model writes after `prompt`, drawn at `TEMPERATURE` with seed 0."""
    torch.manual_seed(0)
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    options = {"max_new_tokens": 100, "do_sample": True, "temperature": TEMPERATURE, "top_k": 0}
    out = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).rstrip()


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the bf16 model in `SHARDS` shards, its configs and its tokenizer.

    Raises:
        RuntimeError: the weights came out in another number of shards.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.safetensors*"):
        stale.unlink()
    model.to(torch.bfloat16)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    largest = max(p.numel() * p.element_size() for p in model.parameters())
    # A shard closes before the tensor that would overflow it, so it may fall short by the largest.
    model.save_pretrained(folder, max_shard_size=size // SHARDS + largest // 2)
    tokenizer.save_pretrained(folder)
    expected = [f"model-{i:05}-of-{SHARDS:05}.safetensors" for i in range(1, SHARDS + 1)]
    if (found := sorted(p.name for p in folder.glob("*.safetensors"))) != expected:
        raise RuntimeError(f"{folder} holds {found}, expected {expected}: choose another max_shard_size")


def excerpt(sources: list[Source]) -> str:
    """Whole files of `sources`, the shortest of 2 kB and more first, that carry no copyright notice of their own."""
    text = ""
    for source in sorted(sources, key=lambda s: len(s.text)):
        if len(source.text) >= 2000 and "copyright" not in source.text.lower():
            text += source.text
            if len(text) >= HELDOUT_EXCERPT_BYTES:
                break
    return text


def evaluate(folder: Path, tokenizer: PreTrainedTokenizerFast, training: np.ndarray, sources: list[Source]) -> dict:
    """The figures of the saved model and of the 3-gram on held-out `sources`, by their names in the card."""
    documents = encode(tokenizer, sources)
    tokens = sum(len(ids) - 1 for ids in documents)
    size = sum(len(source.text.encode()) for source in sources)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    wrong = LlamaForCausalLM.from_pretrained(
        folder, dtype=torch.float32, rope_parameters={"rope_type": "default", "rope_theta": 10000.0}
    ).eval()
    sums = {
        "model": model_nats(model, documents),
        "trigram": trigram_nats(training, documents, tokenizer.eos_token_id),
        "wrong": model_nats(wrong, documents),
    }
    figures = {"held_out_files": len(sources), "held_out_bytes": size, "held_out_tokens": tokens}
    for name, nats in sums.items():
        figures |= {f"{name}_perplexity": math.exp(nats / tokens), f"{name}_bits": nats / math.log(2) / size}
    question = tokenizer.apply_chat_template(
        [{"role": "user", "content": SAMPLE_CHAT}], tokenize=False, add_generation_prompt=True
    )
    return figures | {
        "prompt": SAMPLE_PROMPT,
        "completion": complete(model, tokenizer, BOS + SAMPLE_PROMPT),
        "chat": SAMPLE_CHAT,
        "temperature": TEMPERATURE,
        "answer": complete(model, tokenizer, question),
    }


def main() -> None:
    """Make the tokenizer, the model, the held-out excerpt and the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERE / "tiny-llama", help="folder of the model")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"batches of {BATCH} x {CONTEXT} tokens")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    print(f"data: the sources of Python {platform.python_version()}; others give another model", file=sys.stderr)
    sources = stdlib_sources()
    training, held_out = [s for s in sources if not s.held_out], [s for s in sources if s.held_out]
    tokenizer = train_tokenizer([s.text for s in training])
    check_round_trips(tokenizer, ROUND_TRIPS + [s.text for s in sources])
    files, chats = encode(tokenizer, training), encode_chats(tokenizer, training)
    model = build_model(tokenizer)
    train(model, files + chats, args.steps, args.seed)
    save(model, tokenizer, args.output)
    (args.output.parent / "heldout.txt").write_text(excerpt(held_out), encoding="utf-8")
    # The 3-gram is better without the conversations, which repeat the files: it is compared at its best.
    figures = evaluate(args.output, tokenizer, np.concatenate(files), held_out)
    card = CARD.format(
        **figures,
        config=model.config,
        theta=model.config.rope_parameters["rope_theta"],
        context=CONTEXT,
        parameters=model.num_parameters(),
        megabytes=sum(p.stat().st_size for p in args.output.iterdir() if p.name != "README.md") / 1e6,
        steps=args.steps,
        seed=args.seed,
        cpu_minutes=time.process_time() / 60,
        python=platform.python_version(),
        torch=torch.__version__.split("+")[0],
        transformers=transformers.__version__,
        training_files=len(training),
        training_tokens=sum(map(len, files)),
        chats=len(chats),
        chat_tokens=sum(map(len, chats)),
    )
    (args.output / "README.md").write_text(card, encoding="utf-8")
    print(card)


if __name__ == "__main__":
    main()
