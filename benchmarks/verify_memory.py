"""Peak memory and time of ``verify(mode="layerwise")`` on a generated checkpoint of Llama-3.2-1B's shape.

    python benchmarks/verify_memory.py [--folder TMP] [--layers 16] [--bits 4] [--tokens 24]

Writes a random bf16 checkpoint (2.47 GB for 16 layers) shard by shard, its conversion (the same tensors, or quantized
with ``mx.quantize``), verifies it in a child process and prints the child's peak resident memory and wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

CHILD = """
import functools, json, sys, time
from pathlib import Path
from mlxport.source import open_checkpoint
from mlxport.layouts.mlx_lm.opening import open_model
from mlxport.transform import invert
from mlxport.parity import verify
source, output, tokens = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
checkpoint = open_checkpoint(source)
program = open_model(checkpoint).plain.program
report = verify(output, checkpoint, mode="layerwise", tokens=tokens, invert=functools.partial(invert, program),
                on_progress=lambda line: print(time.strftime("%X"), line, flush=True))
print(report.summary())
print("worst layer:", max(report.layers, key=lambda layer: layer.relative))
print("seconds:", report.seconds)
"""


def config_of(layers: int) -> dict[str, object]:
    """Llama-3.2-1B's sizes."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }


def shards(layers: int) -> Iterator[dict[str, object]]:
    """The embedding, then four layers at a time."""
    import mlx.core as mx

    def weight(*shape: int) -> mx.array:
        return (mx.random.normal(shape) * 0.02).astype(mx.bfloat16)

    yield {"model.embed_tokens.weight": weight(128256, 2048), "model.norm.weight": mx.ones(2048, mx.bfloat16)}
    for first in range(0, layers, 4):
        shard = {}
        for layer in range(first, min(first + 4, layers)):
            name = f"model.layers.{layer}."
            for part, shape in (("q", (2048, 2048)), ("k", (512, 2048)), ("v", (512, 2048)), ("o", (2048, 2048))):
                shard[f"{name}self_attn.{part}_proj.weight"] = weight(*shape)
            for part, shape in (("gate", (8192, 2048)), ("up", (8192, 2048)), ("down", (2048, 8192))):
                shard[f"{name}mlp.{part}_proj.weight"] = weight(*shape)
            for norm in ("input_layernorm", "post_attention_layernorm"):
                shard[f"{name}{norm}.weight"] = mx.ones(2048, mx.bfloat16)
        yield shard


def write(folder: Path, layers: int, bits: int) -> tuple[Path, Path]:
    """The checkpoint and its conversion, one shard in memory at a time."""
    import mlx.core as mx

    mx.random.seed(0)
    source, output = folder / "source", folder / "output"
    count, index, config = 1 + (layers + 3) // 4, {}, config_of(layers)
    for made in (source, output):
        made.mkdir(parents=True)
    for number, shard in enumerate(shards(layers), 1):
        name = f"model-{number:05d}-of-{count:05d}.safetensors"
        index.update(dict.fromkeys(shard, name))
        mx.save_safetensors(str(source / name), shard, metadata={"format": "pt"})
        if not bits:
            os.link(source / name, output / name)
            continue
        packed = {}
        for key, value in shard.items():
            parts = mx.quantize(value, 64, bits) if value.ndim == 2 else (value,)
            names = ("weight", "scales", "biases")[: len(parts)]
            packed.update({f"{key.removesuffix('weight')}{n}": part for n, part in zip(names, parts, strict=True)})
        mx.save_safetensors(str(output / name), packed, metadata={"format": "mlx"})
    (source / "config.json").write_text(json.dumps(config))
    index_file = {"metadata": {}, "weight_map": index}
    (source / "model.safetensors.index.json").write_text(json.dumps(index_file))
    if bits:
        config["quantization"] = config["quantization_config"] = {"group_size": 64, "bits": bits, "mode": "affine"}
    (output / "config.json").write_text(json.dumps(config))
    return source, output


def main() -> None:
    """Write, verify in a child, report, delete."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=None, help="where to write (about 3 GB)")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--bits", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=16)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        # In a child too: memory that this process once had would count as the verification's.
        pid = os.fork()
        if pid == 0:
            write(folder, options.layers, options.bits)
            os._exit(0)
        if os.waitpid(pid, 0)[1]:
            sys.exit("writing the checkpoint failed")
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        command = [sys.executable, "-c", CHILD, str(folder / "source"), str(folder / "output"), str(options.tokens)]
        process = subprocess.Popen(command)
        _, status, usage = os.wait4(process.pid, 0)
        unit = 1 if sys.platform == "darwin" else 1024
        print(f"peak RSS: {usage.ru_maxrss * unit / 1e6:.0f} MB (writing: {before * unit / 1e6:.0f} MB)")
        sys.exit(status != 0)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
