"""Convert a tiny random model of every type of transformers that writes, generate in unmodified mlx-lm, compare tokens.

Each runs in a process of its own, with a limit on its time. Results are JSON lines, appended as they come; a second run
goes on where the first ended. Writes docs/generating.md.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import re
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import model_cases as cases
import sequence_cases as sequences
import sweep_pool

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
COUNT = 32
PROMPTS = (11, 3, 24)  # tokens; two are followed by COUNT tokens, the last is the third of a batch
CHECKS = ("chunks", "batch", "saved cache", "trim", "window")
RAN = ("equal", "differs", "refused", "error", "time")  # statuses of models that run with a cache in transformers

Task = tuple[str, str]  # type and class


class _Stopped(Exception):
    """What ends a case before tokens are compared, with its status."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def check(task: Task) -> dict[str, Any]:
    """Build, convert, generate and compare one model; what stops it is part of the result."""
    import torch
    import transformers

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    started = time.monotonic()
    try:
        found = _checked(*task)
    except _Stopped as error:
        found = {"status": error.status, "reason": str(error)}
    except Exception as error:
        found = {"status": "error", "reason": sweep_pool.failure(error)}
    return {**found, "seconds": round(time.monotonic() - started, 1)}


def _checked(model_type: str, class_name: str) -> dict[str, Any]:
    from mlxport.parity.generation_checks import check_generation
    from mlxport.quant.tolerances import ROWS

    model, texts, odd = _original(model_type, class_name)
    with tempfile.TemporaryDirectory() as temporary:
        folder = _converted(model, Path(temporary))
        found: dict[str, Any] = {"lines": (folder / "model.py").read_text().count("\n")}
        ported, differing = (_translated if model.config.is_encoder_decoder else _generated)(folder, model, texts)
        report = check_generation(ported, texts, None, ROWS["same weights"], "")
    checks = {item.name: item for item in report.checks}
    found["checks"] = {
        name: "ok" if not (item.failure or item.limit) else f"no: {item.limit}" if item.limit else "differs"
        for name, item in checks.items()
    }
    failures = [odd] if odd else []
    failures += [f"{item.name}: {item.failure}" for item in report.checks if item.failure]
    if differing and not checks["tokens"].failure:
        failures.append(f"{differing}, where logits are as good as equal")
    equal = not checks["tokens"].failure and not differing
    return {**found, "status": "equal" if equal else "differs", "reason": "; ".join(failures)}


def _original(model_type: str, class_name: str) -> tuple[Any, list[Any], str]:
    """The first tiny model that runs with a cache, what transformers writes with it, and what is odd about that."""
    failure: Exception | None = None
    for variant in cases.VARIANTS:
        try:
            changes = {} if _reads(class_name) else {"is_decoder": True}
            model = cases.make_model(model_type, class_name, variant, **changes)
            model.config.use_cache = True
            if model.config.is_encoder_decoder:
                source = sequences.sources(model)[0]
                return model, sequences.written_texts(model, source, PROMPTS, COUNT), ""
            return model, *_continued(model)
        except _Stopped:
            raise
        except Exception as error:
            failure = failure or error
    assert failure is not None
    raise _Stopped("not-eager", sweep_pool.failure(failure))


def _reads(class_name: str) -> bool:
    """Whether a class is listed with those that read one text and write another."""
    return class_name in {name for _, name in _listed("SEQ_TO_SEQ_CAUSAL_LM")}


def _continued(model: Any) -> tuple[list[Any], str]:
    """What transformers writes after prompts, and what is odd about that."""
    import torch

    from mlxport.layouts.generated.generation_step import cache_parameter
    from mlxport.parity.continuations import followed

    vocabulary = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(5, vocabulary - 1, (n,), generator=generator).numpy() for n in PROMPTS]
    with torch.no_grad():
        output = model(input_ids=torch.tensor(prompts[0])[None], use_cache=True)
    parameter = cache_parameter(model.forward)
    if parameter is None or (output.get(parameter) is None and not _fills(model, parameter, prompts[0])):
        raise _Stopped("no-cache", "it gives no cache in transformers")
    texts = [followed(model, prompt, COUNT) for prompt in prompts]
    return [text for text, _ in texts], texts[0][1]


def _fills(model: Any, parameter: str, prompt: Any) -> bool:
    """Whether a model puts something into the cache that ``generate`` gives it, though it hands none back."""
    import torch
    from transformers import DynamicCache

    if parameter != "past_key_values":
        return False
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=torch.tensor(prompt)[None], past_key_values=cache, use_cache=True)
    return any(getattr(layer, "is_initialized", False) for layer in cache.layers)


def _converted(model: Any, folder: Path) -> Path:
    """The folder that ``convert`` makes of it."""
    import mlxport
    from mlxport.errors import UnsupportedError

    layout = "generated-seq2seq" if model.config.is_encoder_decoder else "generated-lm"
    if model.config.is_encoder_decoder:
        sequences.free(model)
    model.save_pretrained(folder / "original")
    write_tokenizer(folder / "original", model.config.get_text_config().vocab_size)
    try:
        mlxport.convert(
            folder / "original", folder / "ported", layout=layout, verify="none", quiet=True, text_only=True
        )
    except UnsupportedError as error:
        raise _Stopped("refused", error.message) from error
    return folder / "ported"


def write_tokenizer(folder: Path, vocabulary: int) -> None:
    """One word a token."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = models.WordLevel({"<unk>" if index == 1 else f"w{index}": index for index in range(vocabulary)}, "<unk>")
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    end = AddedToken("w2", single_word=True)  # not the beginning of w20
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token=end).save_pretrained(folder)


def _translated(folder: Path, model: Any, texts: list[Any]) -> tuple[Any, str]:
    """A decoder that has read a text, and where what it writes of texts is not what transformers writes."""
    import mlx.core as mx
    from mlx_lm.utils import load_model

    from mlxport.parity.sequence_steps import HasRead

    ported = load_model(folder, trust_remote_code=True)[0]
    return HasRead(ported, mx.array([sequences.sources(model)[0]])), sequences.differing(model, folder, COUNT)


def _generated(folder: Path, _: Any, texts: list[Any]) -> tuple[Any, str]:
    """mlx-lm's model of a folder, and where the tokens that it generates are not those of the texts."""
    import mlx.core as mx
    from mlx_lm.generate import generate_step
    from mlx_lm.utils import load_model

    model = load_model(folder, trust_remote_code=True)[0]
    for text in texts[:2]:
        prompt = mx.array(text.ids[: text.prompt])
        wanted = [*text.ids[text.prompt :], int(text.logits[-1].argmax())]
        for place, (token, _) in enumerate(generate_step(prompt, model, max_tokens=COUNT)):
            if int(token) != wanted[place]:
                return model, f"token {place + 1} after {text.prompt} tokens is {int(token)}, not {wanted[place]}"
    return model, ""


def tasks() -> list[Task]:
    """Type and class of every model that writes; a run cut short is a fair sample."""
    found = dict.fromkeys((*_listed("CAUSAL_LM"), *_listed("SEQ_TO_SEQ_CAUSAL_LM")))
    return sorted(found, key=lambda task: hashlib.md5(repr(task).encode()).digest())


def _listed(head: str) -> list[tuple[str, str]]:
    """Type and class of the models that transformers lists with a head."""
    from transformers.models.auto import modeling_auto

    names = getattr(modeling_auto, f"MODEL_FOR_{head}_MAPPING_NAMES")
    return [(name, known if isinstance(known, str) else known[0]) for name, known in names.items()]


def table(results: dict[Task, dict[str, Any]], total: int) -> str:
    """The committed page; ``total``: how many cases there are."""
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("mlx", "mlx-lm", "torch", "transformers")
    )
    reading = {task for task in results if _reads(task[1])}
    causal = [results[task] for task in sorted(results.keys() - reading)]
    lines = [
        "# Language models generated",
        "",
        "A tiny random model of every causal type of transformers, converted to `generated-lm`, loaded by",
        f"unmodified mlx-lm: {COUNT} greedy tokens from prompts of {PROMPTS[0]} and {PROMPTS[1]} tokens, against",
        "transformers with its own cache. Then the logits of a prompt read in chunks, of a batch of three prompts,",
        "after the cache was saved and loaded, and after it was trimmed. Made by `make sweep-generate` with",
        f"{versions}.",
        "",
        *([f"Tried so far: {len(results)} of {total}, in an order that has nothing to do with their names."]
          if len(results) < total else []),
        *_part(causal),
        "",
        "## Models that read one text and write another",
        "",
        f"Those with an encoder are converted to `generated-seq2seq`: {COUNT} tokens by `mlxport generate`, and by",
        "mlx-lm's `generate_step` with the cache that `encode` filled, from texts of "
        f"{' and '.join(map(str, sequences.SOURCES))} tokens, against transformers.",
        "Then as above, each prompt the beginning of what is written. Types that hear are tried with tokens alone.",
        "",
        *_part([results[task] for task in sorted(reading)]),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _part(rows: list[dict[str, Any]]) -> list[str]:
    """How many of some types write the same, and each with the reason why it does not."""
    ran = [row for row in rows if row["status"] in RAN]
    equal = [row for row in ran if row["status"] == "equal"]
    lines = [
        f"{len(equal)} of {len(ran)} that run with a cache in transformers write the same tokens "
        f"({100 * len(equal) / max(len(ran), 1):.0f}%).",
        f"{sum(row['status'] == 'not-eager' for row in rows)} more do not run from a config derived like this, "
        f"{sum(row['status'] == 'no-cache' for row in rows)} give no cache.",
        "",
        f"| model type | tokens | {' | '.join(CHECKS)} | lines | reason |",
        f"|---|---|{'---|' * len(CHECKS)}---:|---|",
    ]
    for row in rows:
        checks = row.get("checks", {})
        limits = [f"{name}: {said.removeprefix('no: ')}" for name, said in checks.items() if said.startswith("no: ")]
        said = "; ".join([*filter(None, [row.get("reason", "")]), *limits]).replace("|", "\\|")
        said = " ".join(re.sub(r"/\S*/", "", said).split())[:240]  # no path of this machine, no line of its own
        cells = (checks.get(name, "").partition(":")[0] for name in CHECKS)
        lines.append(f"| {row['type']} | {row['status']} | {' | '.join(cells)} | {row.get('lines', '')} | {said} |")
    return lines


def load(path: Path) -> dict[Task, dict[str, Any]]:
    """Results of earlier runs, the last of each case."""
    if not path.exists():
        return {}
    return {(row["type"], row["class"]): row for row in map(json.loads, path.read_text().splitlines())}


def main() -> None:
    """Run the sweep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", help="model types")
    parser.add_argument("--status", nargs="*", help="only what has one of these statuses in --json, again")
    parser.add_argument("--json", type=Path, default=Path(".sweep-generate.jsonl"), help="results, appended to")
    parser.add_argument("--output", type=Path, help="write the table here (markdown)")
    parser.add_argument("--timeout", type=float, default=300, help="seconds per model")
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    done, todo = load(arguments.json), tasks()
    total = len(todo)
    if arguments.only is not None:
        todo = [task for task in todo if task[0] in arguments.only]
    elif arguments.status is not None:
        todo = [task for task in todo if done.get(task, {}).get("status") in arguments.status]
    else:
        todo = [task for task in todo if task not in done]
    with arguments.json.open("a") as log:
        for task, found, why in sweep_pool.outcomes(check, todo, arguments.workers, arguments.timeout):
            row = {"type": task[0], "class": task[1], **(found or {"status": "time", "reason": why})}
            done[task] = row
            log.write(json.dumps(row) + "\n")
            log.flush()
            print(f"{row['type']:24} {row['status']:9} {row.get('seconds', ''):6} {row['reason'][:160]}", flush=True)
    if arguments.output:
        arguments.output.write_text(table(done, total))


if __name__ == "__main__":
    main()
