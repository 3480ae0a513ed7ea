"""Language models ported beside mlx-lm's own: MLX primitives of a step, speed of prompts and of generation, memory.

python benchmarks/generate.py [--models llama qwen3 …] [--bits 0 4] [--repeat 5] [--output docs/generation-speed.md]

Models of some 100 M parameters with random weights are made in a temporary folder and converted to both layouts. Both
sides run in turn within one process, so that they see the same machine.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

import mlxport
from port import primitives
from sweep_generate import write_tokenizer

os.environ.setdefault("HF_HUB_OFFLINE", "1")
VOCABULARY, PROMPT, STEPS = 16384, 128, 16
_WIDE: dict[str, Any] = dict(
    vocab_size=VOCABULARY, hidden_size=768, intermediate_size=2048, num_hidden_layers=10, num_attention_heads=12,
    num_key_value_heads=4, max_position_embeddings=1024, bos_token_id=None, eos_token_id=None, pad_token_id=None,
)  # fmt: skip
_EXPERTS: dict[str, Any] = _WIDE | dict(hidden_size=512, num_hidden_layers=8, num_attention_heads=8)
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _WIDE,
    "qwen3": _WIDE | dict(head_dim=64),
    "gemma3_text": _WIDE | dict(head_dim=64, sliding_window=128),
    "phi3": _WIDE,
    "mixtral": _EXPERTS | dict(intermediate_size=768, num_local_experts=8, num_experts_per_tok=2),
    "deepseek_v3": _EXPERTS | dict(
        num_key_value_heads=8, intermediate_size=1024, moe_intermediate_size=256, n_routed_experts=16, n_group=1,
        topk_group=1, num_experts_per_tok=4, n_shared_experts=1, first_k_dense_replace=1, q_lora_rank=256,
        kv_lora_rank=128, qk_rope_head_dim=32, qk_nope_head_dim=64, v_head_dim=64,
    ),
    "mamba": dict(vocab_size=VOCABULARY, hidden_size=768, num_hidden_layers=16, bos_token_id=None, eos_token_id=None,
                  pad_token_id=None),
}  # fmt: skip
SIDES = {"ported": "generated-lm", "mlx-lm's own": "mlx-lm"}


def save(model_type: str, folder: Path) -> int:
    """A model with random weights; gives its parameters."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.CONFIG_MAPPING[model_type](**CONFIGS[model_type])
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(folder)
    write_tokenizer(folder, VOCABULARY)
    return sum(p.numel() for p in model.parameters())


def opened(original: Path, folder: Path, layout: str, bits: int) -> Any:
    """What mlx-lm loads of a conversion to a layout."""
    from mlx_lm.utils import load_model

    quant = dict(quantize=bits) if bits else {}
    mlxport.convert(original, folder, layout=layout, verify="none", quiet=True, **quant)
    return load_model(folder, trust_remote_code=True)[0]


def prompted(model: Any, ids: mx.array) -> list[Any]:
    """A cache that holds a prompt."""
    from mlx_lm.models.cache import make_prompt_cache

    cache = make_prompt_cache(model)
    model(ids, cache=cache)
    mx.eval([held.state for held in cache])
    return list(cache)


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of a call, and what it gives."""
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def decode(model: Any, cache: list[Any]) -> None:
    """Greedy steps, each evaluated."""
    token = mx.array([[1]])
    for _ in range(STEPS):
        token = model(token, cache=cache)[:, -1].argmax(-1, keepdims=True)
        mx.eval(token)


def steps_of(model: Any, ids: mx.array) -> int:
    """Primitives of one step after a prompt."""
    cache = prompted(model, ids)
    return primitives(lambda: model(mx.array([[1]]), cache=cache))


def run_in_mlx(model: Any, ids: mx.array) -> tuple[float, float]:
    """Seconds of a prompt and of the steps after one."""
    mx.clear_cache()
    mx.reset_peak_memory()
    prefill, cache = timed(lambda: prompted(model, ids))
    return prefill, timed(lambda: decode(model, cache))[0]


def opened_in_torch(original: Path) -> Callable[[mx.array], tuple[float, float]]:
    """The same of transformers' model, with its own cache."""
    import torch
    import transformers

    from mlxport.layouts.generated.generation_step import cache_parameter

    model = transformers.AutoModelForCausalLM.from_pretrained(original, dtype=torch.float32).eval()
    parameter = cache_parameter(model.forward)

    def run(ids: mx.array) -> tuple[float, float]:
        def step(token: Any, cache: Any) -> tuple[Any, Any]:
            with torch.no_grad():
                output = model(input_ids=token, use_cache=True, **({parameter: cache} if cache is not None else {}))
            return output.logits[:, -1].argmax(-1, keepdim=True), output[parameter]

        def steps() -> None:
            token, held = torch.tensor([[1]]), cache
            for _ in range(STEPS):
                token, held = step(token, held)

        prompt = torch.from_numpy(np.array(ids)).long()
        prefill, (_, cache) = timed(lambda: step(prompt, None))
        return prefill, timed(steps)[0]

    return run


def measured(sides: dict[str, Any], repeat: int, original: Path | None) -> dict[str, Any]:
    """Both sides, and torch where ``original`` is given, in turn, by what was measured."""
    ids = mx.array(np.random.default_rng(0).integers(0, VOCABULARY, (1, PROMPT)))
    logits = [np.array(model(ids, cache=prompted(model, ids[:, :8]))) for model in sides.values()]
    in_torch = opened_in_torch(original) if repeat and original is not None else None
    names = [*sides, *(["torch"] if in_torch else [])]
    times: dict[str, dict[str, list[float]]] = {what: {name: [] for name in names} for what in ("prefill", "decode")}
    peaks = {}
    for round_ in range(repeat + 1 if repeat else 0):
        for name in names:
            found = in_torch(ids) if name == "torch" and in_torch else run_in_mlx(sides[name], ids)
            if name in sides:
                peaks[name] = mx.get_peak_memory()
            if round_:
                times["prefill"][name].append(found[0])
                times["decode"][name].append(found[1])
    return {
        "difference": float(np.abs(logits[0] - logits[1]).max() / np.abs(logits[1]).max()),
        "primitives": {name: steps_of(model, ids) for name, model in sides.items()},
        "times": times,
        "peaks": peaks,
    }


def cells(found: dict[str, Any]) -> list[str]:
    """Of a row of the table: tokens in a second, both sides, and how they compare within a round."""
    rows = [" / ".join(str(count) for count in found["primitives"].values())]
    for what, tokens in (("prefill", PROMPT), ("decode", STEPS)):
        ours, theirs, *others = found["times"][what].values()
        if not ours:
            rows.append("")
            continue
        ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
        ours, theirs, *others = (f"{tokens / statistics.median(side):.0f}" for side in (ours, theirs, *others))
        rows.append(f"{ours} / {theirs} ({ratio:.2f})" + "".join(f"; {speed}" for speed in others))
    peaks = " / ".join(f"{peak / 1e6:.0f} MB" for peak in found["peaks"].values())
    return [*rows, peaks, f"{found['difference']:.0e}"]


def page(lines: list[str], repeat: int) -> str:
    """The committed page."""
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("mlx", "mlx-lm", "torch", "transformers")
    )
    return "\n".join([
        "# Speed of generation",
        "",
        "Language models ported from transformers (`--layout generated-lm`) beside mlx-lm's own code for them, both",
        f"loaded by mlx-lm: random weights, a prompt of {PROMPT} tokens, then {STEPS} steps. Primitives are those of",
        "one step's graph; speeds are tokens in a second, and in brackets the median of the ratios within a round:",
        "above 1 the port is faster. After a semicolon, for the record: the original in torch, eager, float32, in the",
        "same rounds. Memory is MLX's peak. The last column is the largest difference of a logit, of",
        "the largest; parameters are those of the original. Made by",
        f"`{shlex.join(['python', 'benchmarks/generate.py', *sys.argv[1:]])}`,",
        f"{repeat} rounds in turn,",
        f"on {os.cpu_count()} cores ({mx.default_device()}), {versions}.",
        "",
        "| model | parameters | weights | primitives: ported / own | prompt, tokens/s | steps, tokens/s | memory | |",
        "|---|---|---|---|---|---|---|---|",
        *lines,
        "",
    ])  # fmt: skip


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(CONFIGS), choices=list(CONFIGS))
    parser.add_argument("--bits", nargs="*", type=int, default=[0, 4], help="0 for float32")
    parser.add_argument("--timed", nargs="*", default=list(CONFIGS), help="of the others, primitives are counted only")
    parser.add_argument("--repeat", type=int, default=5, help="rounds that are timed")
    parser.add_argument("--output", type=Path, help="write the table here")
    options = parser.parse_args()
    lines = []
    for model_type in options.models:
        with tempfile.TemporaryDirectory() as folder:
            parameters = save(model_type, Path(folder, "original"))
            for bits in options.bits:
                name = f"{bits} bits" if bits else "float32"
                try:
                    sides = {
                        side: opened(Path(folder, "original"), Path(folder, f"{layout}-{bits}"), layout, bits)
                        for side, layout in SIDES.items()
                    }
                    repeat = options.repeat if model_type in options.timed else 0
                    row = cells(measured(sides, repeat, None if bits else Path(folder, "original")))
                except mlxport.MlxportError as error:
                    row = [f"refused: {error.message}", "", "", "", ""]
                lines.append(f"| {model_type} | {parameters / 1e6:.0f} M | {name} | {' | '.join(row)} |")
                print(lines[-1], flush=True)
    if options.output:
        options.output.write_text(page(lines, options.repeat))


if __name__ == "__main__":
    main()
