"""Time and peak memory of a conversion, verified and not, beside ``cp -r`` and ``mlx_lm convert``, alternating.

    python benchmarks/convert.py                      # 1.24 B parameters, on disk and in /dev/shm
    python benchmarks/convert.py --size 4.7b --runs 1 --only mlxport
    python benchmarks/convert.py --where /tmp --runs 1 --only bf16      # what users wait for: with verification

It makes a Llama checkpoint with random weights (bf16, five shards, tied embedding) and prints Markdown tables.
Peak memory is the largest resident set of the process, as ``/usr/bin/time`` reports it (``ru_maxrss``).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SIZES = {
    "tiny": (256, 4, 512, 8, 4, 2048),
    "1.24b": (2048, 16, 8192, 32, 8, 128256),
    "4.7b": (3584, 24, 14336, 28, 7, 128256),
}
CORPUS = "the quick brown fox jumps over the lazy dog 0123456789 " * 8


@dataclass(frozen=True)
class Run:
    """One measured command: wall seconds and peak resident bytes."""

    seconds: float
    peak: int


def tensors(size: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Llama with a tied embedding."""
    hidden, layers, inner, heads, kv_heads, vocab = SIZES[size]
    head = hidden // heads
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for i in range(layers):
        prefix = f"model.layers.{i}."
        shapes |= {
            prefix + "input_layernorm.weight": (hidden,),
            prefix + "self_attn.q_proj.weight": (hidden, hidden),
            prefix + "self_attn.k_proj.weight": (kv_heads * head, hidden),
            prefix + "self_attn.v_proj.weight": (kv_heads * head, hidden),
            prefix + "self_attn.o_proj.weight": (hidden, hidden),
            prefix + "post_attention_layernorm.weight": (hidden,),
            prefix + "mlp.gate_proj.weight": (inner, hidden),
            prefix + "mlp.up_proj.weight": (inner, hidden),
            prefix + "mlp.down_proj.weight": (hidden, inner),
        }
    return shapes | {"model.norm.weight": (hidden,)}


def make_checkpoint(folder: Path, size: str, shards: int = 5) -> int:
    """Write the checkpoint, a block at a time; returns the number of parameters."""
    hidden, layers, inner, heads, kv_heads, vocab = SIZES[size]
    folder.mkdir(parents=True)
    shapes = tensors(size)
    total = sum(int(np.prod(shape)) for shape in shapes.values())
    generator = np.random.default_rng(0)
    pool = (generator.standard_normal(1 << 22, dtype=np.float32) * 0.02).view(np.uint32) >> 16
    pool = pool.astype(np.uint16)
    files: list[list[str]] = [[]]
    filled = 0
    for name, shape in shapes.items():
        if filled >= total * len(files) / shards and len(files) < shards:
            files.append([])
        files[-1].append(name)
        filled += int(np.prod(shape))
    weight_map = {}
    for number, names in enumerate(files, 1):
        filename = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        _write(folder / filename, {name: shapes[name] for name in names}, pool, generator)
        weight_map |= dict.fromkeys(names, filename)
    index = {"metadata": {"total_size": 2 * total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "head_dim": hidden // heads,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "max_position_embeddings": 8192,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    _tokenizer(folder)
    return total


def _write(path: Path, shapes: dict[str, tuple[int, ...]], pool: np.ndarray, generator: np.random.Generator) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            left = int(np.prod(shape))
            while left:
                block = np.roll(pool, int(generator.integers(pool.size)))[: min(left, pool.size)]
                file.write(block.tobytes())
                left -= block.size


def _tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([CORPUS], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)


def commands(source: Path, output: Path) -> dict[str, list[str]]:
    """Name to command line; every command writes ``output``."""
    python = sys.executable
    verified = [python, "-m", "mlxport", "convert", str(source), str(output), "--quiet"]
    ours = [*verified, "--verify", "none"]
    theirs = [python, "-m", "mlx_lm", "convert", "--hf-path", str(source), "--mlx-path", str(output)]
    return {
        "cp -r": ["cp", "-r", str(source), str(output)],
        "mlx_lm bf16": theirs,
        "mlxport bf16": ours,
        "mlx_lm q4": [*theirs, "-q"],
        "mlxport q4": [*ours, "-q", "4"],
        "mlxport bf16, verified": verified,
        "mlxport q4, verified": [*verified, "-q", "4"],
    }


def measure(command: list[str], output: Path) -> Run:
    """Run one command to the end; its output folder is removed afterwards."""
    shutil.rmtree(output, ignore_errors=True)
    with tempfile.TemporaryFile() as log:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        if status:
            log.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{log.read().decode(errors='replace')}")
    shutil.rmtree(output)
    return Run(seconds, usage.ru_maxrss * (1 if platform.system() == "Darwin" else 1024))


def report(where: str, results: dict[str, list[Run]], nbytes: int) -> None:
    """Print one Markdown table."""
    print(f"\n{where}\n\n| command | seconds, median (min–max) | GB/s of source | peak RSS |\n|---|---|---|---|")
    medians = {name: statistics.median(run.seconds for run in runs) for name, runs in results.items()}
    for name, runs in results.items():
        seconds = [run.seconds for run in runs]
        spread = f"{medians[name]:.2f} ({min(seconds):.2f}–{max(seconds):.2f})"
        peak = max(run.peak for run in runs) / 1e6
        print(f"| {name} | {spread} | {nbytes / medians[name] / 1e9:.2f} | {peak:,.0f} MB |")
    for kind in ("bf16", "q4"):
        if f"mlx_lm {kind}" in medians and f"mlxport {kind}" in medians:
            ratio = medians[f"mlx_lm {kind}"] / medians[f"mlxport {kind}"]
            print(f"\n{kind}: mlxport's throughput is {ratio:.2f} times mlx_lm's")
        if f"mlx_lm {kind}" in medians and f"mlxport {kind}, verified" in medians:
            ratio = medians[f"mlxport {kind}, verified"] / medians[f"mlx_lm {kind}"]
            print(f"\n{kind}: verified, which mlx_lm does not do, mlxport takes {ratio:.2f} times as long as mlx_lm")


def main() -> None:
    """Make the checkpoint, run everything, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="1.24b")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", default="", help="run only the commands that contain this text")
    parser.add_argument("--where", nargs="*", default=[tempfile.gettempdir(), "/dev/shm"])
    args = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {args.runs} runs each")
    for where in args.where:
        with tempfile.TemporaryDirectory(dir=where) as folder:
            source, output = Path(folder) / "source", Path(folder) / "output"
            parameters = make_checkpoint(source, args.size)
            chosen = {name: c for name, c in commands(source, output).items() if args.only in name}
            for command in chosen.values():  # warm up: imports, page cache
                measure(command, output)
            results: dict[str, list[Run]] = {name: [] for name in chosen}
            for _ in range(args.runs):
                for name, command in chosen.items():
                    results[name].append(measure(command, output))
            report(
                f"{where}: {parameters / 1e9:.2f} B parameters, {2 * parameters / 1e9:.2f} GB", results, 2 * parameters
            )


if __name__ == "__main__":
    main()
