"""Compare every architecture of mlx-lm with transformers on tiny random models, and write docs/architectures.md.

Each architecture runs in a process of its own: build the torch model with seeded random weights, save it as
transformers does, convert the folder, load it with mlx-lm, and compare the logits in float32, once without a cache and
once in steps.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import queue
import re
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sweep_cases as cases
import sweep_perturbations as perturbations
import sweep_report as report

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if TYPE_CHECKING:
    from mlxport.layouts.mlx_lm.normalize import NormalizedConfig

PRELOAD = [
    "torch",
    "torch._dynamo",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "mlx_lm.utils",
]
TOLERANCE = 2e-4  # of the largest logit; float32 accumulates over a few layers and two softmax implementations
NEAR = 5e-3
LENGTH = 24
PREFILL = 14


def convert_folder(source: Path, destination: Path, converter: str, verified: bool) -> NormalizedConfig | None:
    """Turn a transformers checkpoint into one that mlx-lm loads, by mlxport or by mlx-lm alone."""
    if converter == "mlx_lm":
        import mlx_lm

        mlx_lm.convert(str(source), str(destination), dtype="float32")
        return None
    import mlxport
    from mlxport.layouts.mlx_lm.normalize import normalize_config

    mlxport.convert(source, destination, dtype="float32", verify="full" if verified else "none")
    return normalize_config(json.loads((source / "config.json").read_text()))


def write_tokenizer(folder: Path, tokens: int) -> None:
    """Any tokenizer that fits: a checkpoint without one is refused."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"w{number}": number for number in range(tokens)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0", eos_token="w1").save_pretrained(folder)


def build(config: Any, seed: int) -> Any:
    """Return the torch model of `config` with weights that hide nothing: no zeros, no ones."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    torch.manual_seed(seed)
    auto = AutoModelForImageTextToText if "text_config" in config.sub_configs else AutoModelForCausalLM
    model = auto.from_config(config, attn_implementation="eager", dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        tensors = dict(model.named_parameters())
        tensors.update({k: v for k, v in model.named_buffers() if k in model.state_dict()})
        for name, value in tensors.items():
            if not value.is_floating_point():
                continue
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith("e_score_correction_bias"):
                noise = noise.abs()  # below 0, two ways to leave out a group of experts (0 and -inf) differ
            if value.ndim >= 2:
                value.copy_(noise / value.shape[-1] ** 0.5)
            else:
                value.add_(0.2 * noise)
    return model.eval()


def torch_logits(model: Any, ids: list[list[int]]) -> Any:
    """Return float32 logits [batch, length, vocabulary]."""
    import torch

    with torch.no_grad():
        return model(input_ids=torch.tensor(ids), use_cache=False).logits.float().numpy()


def mlx_logits(folder: Path, ids: list[list[int]]) -> tuple[Any, Any]:
    """Return the logits of one pass, and those of a prefill followed by single steps with a cache."""
    import mlx.core as mx
    import numpy as np
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import load_model

    model, _ = load_model(folder)
    inputs = mx.array(ids)
    whole = np.array(model(inputs).astype(mx.float32))
    cache = make_prompt_cache(model)
    parts = [model(inputs[:, :PREFILL], cache=cache)]
    parts += [model(inputs[:, i : i + 1], cache=cache) for i in range(PREFILL, len(ids[0]))]
    return whole, np.array(mx.concatenate(parts, axis=1).astype(mx.float32))


def compare(expected: Any, got: Any) -> dict[str, float]:
    """Return the largest error over the largest logit, the cosine and the share of equal first choices."""
    import numpy as np

    if expected.shape != got.shape:
        width = min(expected.shape[-1], got.shape[-1])
        expected, got = expected[..., :width], got[..., :width]
    a, b = expected.astype(np.float64).ravel(), got.astype(np.float64).ravel()
    return {
        "error": float(np.nan_to_num(np.abs(a - b), nan=np.inf).max() / np.abs(a).max()),
        "cosine": float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))),
        "top1": float((expected.argmax(-1) == got.argmax(-1)).mean()),
    }


def run_case(case: cases.Case, converter: str = "mlxport", seed: int = 0) -> dict[str, Any]:
    """Build, save, convert and compare one case; what stops it is part of the result."""
    result: dict[str, Any] = {"architecture": case.model_type, "variant": case.name}
    with tempfile.TemporaryDirectory() as folder:
        source, destination = Path(folder, "source"), Path(folder, "destination")
        try:
            config = cases.make_config(case)
            model = build(config, seed)
            ids = cases.token_ids(LENGTH)
            expected = torch_logits(model, ids)
            model.save_pretrained(source)
            write_tokenizer(source, expected.shape[-1])
            path = source / "config.json"
            path.write_text(json.dumps(cases.edit_saved(case, json.loads(path.read_text()))))
        except Exception as error:  # a tiny config that transformers cannot build says nothing about mlx-lm
            return {**result, "status": "not built", "reason": _brief(error)}
        try:
            normalized = convert_folder(source, destination, converter, case.name == "base")
            whole, stepped = mlx_logits(destination, ids)
        except (Exception, SystemExit) as error:
            if "No Metal back-end" in str(error):
                return {**result, "status": "not run", "reason": "mlx-lm's code for it runs on Metal only"}
            refused = type(error).__name__ == "UnsupportedError"
            return {**result, "status": "refused" if refused else "failed", "reason": _brief(error)}
        result.update(compare(expected, whole))
        result["cached_error"] = compare(expected, stepped)["error"]
        worst = max(result["error"], result["cached_error"])
        if normalized is not None and normalized.warnings:
            result["reason"] = "; ".join(normalized.warnings)
        return {**result, "status": _status(worst, normalized)}


def _status(worst: float, normalized: NormalizedConfig | None) -> str:
    if worst < TOLERANCE:
        return "parity"
    if normalized is None:
        return "wrong"
    too_long = normalized.exact_tokens is not None and normalized.exact_tokens < LENGTH
    return "limited" if too_long or (normalized.approximate and worst < NEAR) else "wrong"


def _brief(error: BaseException) -> str:
    if type(error).__name__ == "UnsupportedError":
        return re.sub(r"^/\S+: ", "", str(error))  # without the folder
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def refuse_nothing() -> None:
    """Switch off every refusal of a known architecture, to see whether each is needed."""
    from mlxport.layouts.mlx_lm import config_rules as mlx_lm_rules
    from mlxport.layouts.mlx_lm import normalize as mlx_lm_config
    from mlxport.layouts.mlx_lm import rope_settings as mlx_lm_rope

    section: Any = mlx_lm_config._Section
    section._refuse = section._check_activation = lambda *_: None
    for module in (mlx_lm_config, mlx_lm_rope):
        module.knows = lambda *_: mlx_lm_rules.EVERY_ROPE  # type: ignore[attr-defined]


def worker(model_type: str, converter: str, perturb: bool, only: str, prove: bool, results: Any) -> None:
    """Run all cases of one architecture and put each result into the queue, None at the end."""
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    import torch

    torch.set_num_threads(1)
    if prove:
        refuse_nothing()
    try:
        listed = perturbations.perturbed(model_type) if perturb else cases.variants(model_type)
        for case in listed:
            if case.name.startswith(only):
                started = time.monotonic()
                result = run_case(case, converter)
                results.put({**result, "seconds": round(time.monotonic() - started, 2)})
                if result["status"] == "not run":
                    break
    except BaseException as error:
        results.put({"architecture": model_type, "variant": "-", "status": "failed", "reason": _brief(error)})
        raise
    finally:
        results.put(None)


def run_all(
    names: list[str], converter: str, perturb: bool, only: str, prove: bool, timeout: float, jobs: int
) -> Iterator[dict[str, Any]]:
    """Run each architecture in its own process, `jobs` at a time; the slow imports happen once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)

    def one(name: str) -> list[dict[str, Any]]:
        results = context.Queue()
        process = context.Process(target=worker, args=(name, converter, perturb, only, prove, results))
        process.start()
        found: list[dict[str, Any]] = []
        deadline = time.monotonic() + timeout
        trouble = "the process died"
        while True:
            try:
                if (result := results.get(timeout=2)) is None:
                    break
                found.append(result)
            except queue.Empty:
                late = time.monotonic() > deadline
                if late or not process.is_alive():
                    reason = f"no answer in {timeout:.0f} s" if late else trouble
                    found.append({"architecture": name, "variant": "-", "status": "failed", "reason": reason})
                    process.kill()
                    break
        process.join()
        return found

    with ThreadPoolExecutor(jobs) as pool:
        for results in pool.map(one, names):
            yield from results


def main() -> None:
    """Run the sweep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("architectures", nargs="*", help="model types; all that transformers and mlx-lm share if none")
    parser.add_argument("--converter", choices=("mlxport", "mlx_lm"), default="mlxport", help="whose conversion")
    parser.add_argument("--perturb", action="store_true", help="change each field of the config in turn instead")
    parser.add_argument("--prove", action="store_true", help="convert what would be refused: parity is a false refusal")
    parser.add_argument("--only", default="", help="only variants whose name starts with this")
    parser.add_argument("--output", type=Path, help="write the table here (markdown)")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument(
        "--merge", type=Path, help="results of an earlier run, for architectures that this one leaves out"
    )
    parser.add_argument("--against", type=Path, help="results of --converter mlx_lm, for the columns beside")
    parser.add_argument("--timeout", type=float, default=300, help="seconds per architecture")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    names = arguments.architectures or cases.shared()
    results = []
    settings = (arguments.converter, arguments.perturb, arguments.only, arguments.prove)
    for result in run_all(names, *settings, arguments.timeout, arguments.jobs):
        results.append(result)
        number = (
            f"{result['error']:.1e} {result['cached_error']:.1e}" if "error" in result else result.get("reason", "")
        )
        print(f"{result['architecture']:18} {result['variant']:28} {result['status']:9} {number}", flush=True)
    if arguments.merge:
        done = {result["architecture"] for result in results}
        results += [old for old in json.loads(arguments.merge.read_text()) if old["architecture"] not in done]
        results.sort(key=lambda result: str(result["architecture"]))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))
    if arguments.output:
        names = ("mlx", "mlx-lm", "torch", "transformers")
        versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names) + "."
        theirs = json.loads(arguments.against.read_text()) if arguments.against else []
        page = report.table(results, theirs, "make sweep", TOLERANCE, versions)
        arguments.output.write_text(page)


if __name__ == "__main__":
    main()
