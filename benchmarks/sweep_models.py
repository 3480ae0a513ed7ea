"""Port a tiny random model of every transformers type to MLX, compare with torch, and write docs/models.md.

Each model runs in a process of its own, with a limit on its time and memory. Results are JSON lines, appended as they
come; a second run goes on where the first ended.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import re
import resource
import threading
import time
import traceback
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import diffusion_cases as diffusion
import model_cases as cases

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
PRELOAD = ["torch", "torch._dynamo", "transformers.modeling_utils", "transformers.models.auto.modeling_auto", "sympy"]
TOLERANCE = 1e-4
MEMORY = 10 << 30


def run_case(model_type: str, part: str, class_name: str, dynamic: bool = True) -> dict[str, Any]:
    """Build, run, export, port and compare one model; what stops it is part of the result."""
    import torch

    from mlxport.graph.capture.export import capture

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    result: dict[str, Any] = {"type": model_type, "part": part, "class": class_name}
    for number, variant in enumerate(cases.VARIANTS):
        try:
            if part == "diffusers":
                model = diffusion.make_model(model_type)
                given, wanted = _runs(model, [diffusion.CASES[model_type][2]()])
            else:
                model = cases.make_model(model_type, class_name, variant)
                given, wanted = _runs(model, cases.inputs(model))
            break
        except Exception as error:
            if not number:
                failed = {**result, "status": "not-eager", "reason": _brief(error), "trace": _trace(error)}
    else:
        return failed
    result["variant"] = number
    result["inputs"] = sorted(given)
    started = time.monotonic()
    try:
        captured = capture(model, (), _copied(given), dynamic=dynamic)
    except Exception as error:
        return {**result, "status": "not-exported", "reason": _brief(error), "trace": _trace(error)}
    result["export_seconds"] = round(time.monotonic() - started, 2)
    result["static"] = not dynamic or any("sizes are fixed" in note for note in captured.notes)
    result.update(_ported(model, captured, given, wanted))
    if result["status"] == "wrong" and (error := _exported_error(model, given, wanted)) > TOLERANCE:
        result.update(
            status="not-exported", reason=f"torch.export's own program differs from eager torch by {error:.1e}"
        )
    if result["status"] == "wrong" and (error := _rounding_error(model, given, wanted)) > TOLERANCE:
        result.update(
            status="not-determined", reason=f"torch in float32 differs from torch in float64 by {error:.1e} (near ties)"
        )
    return result


def _exported_error(model: Any, given: dict[str, Any], wanted: list[Any]) -> float:
    """How far what torch.export makes of the model is from the model, without mlxport."""
    import torch
    from torch.utils import _pytree as pytree

    with torch.no_grad():
        program = torch.export.export(model, (), _copied(given), strict=False)
        leaves = pytree.tree_leaves(_plain(program.module()(**_copied(given))))
    got = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    return max(_difference(a, b) for a, b in zip(got, wanted, strict=True))


def _rounding_error(model: Any, given: dict[str, Any], wanted: list[Any]) -> float:
    """How far eager torch is from itself in float64; 0 where it does not run in float64."""
    import torch
    from torch.utils import _pytree as pytree

    def wide(leaf: Any) -> Any:
        return leaf.double() if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() else leaf

    try:
        with torch.no_grad():
            out = copy.deepcopy(model).double()(**pytree.tree_map(wide, _copied(given)))
    except Exception:  # code that names float32
        return 0.0
    got = [leaf for leaf in pytree.tree_leaves(_plain(out)) if isinstance(leaf, torch.Tensor)]
    return max(_difference(a, b) for a, b in zip(got, wanted, strict=True))


def _runs(model: Any, tried: Iterable[dict[str, Any]]) -> tuple[dict[str, Any], list[Any]]:
    """The first inputs that the model takes, and its outputs, all finite."""
    import torch
    from torch.utils import _pytree as pytree

    failure: Exception = ValueError("no inputs are known for it")
    for given in tried:
        try:
            with torch.no_grad():
                out = model(**_copied(given))
            wanted = [leaf for leaf in pytree.tree_leaves(_plain(out)) if isinstance(leaf, torch.Tensor)]
        except Exception as error:
            failure = error if not isinstance(failure, ValueError) or "no inputs" in str(failure) else failure
            continue
        if wanted:
            return given, wanted
        failure = ValueError("no tensor comes out")
    raise failure


def _copied(given: dict[str, Any]) -> dict[str, Any]:
    from torch.utils import _pytree as pytree

    return pytree.tree_map(lambda leaf: leaf.clone() if hasattr(leaf, "clone") else leaf, given)


def _plain(out: Any) -> Any:
    """Caches out of the way: they are not part of what is compared."""
    return {k: v for k, v in out.items() if k != "past_key_values"} if hasattr(out, "items") else out


def _ported(model: Any, captured: Any, given: dict[str, Any], wanted: list[Any]) -> dict[str, Any]:
    import mlx.core as mx
    from torch.utils import _pytree as pytree

    from mlxport.graph.build import build
    from mlxport.graph.lower.one_function import MissingOps
    from mlxport.graph.write.port_weights import from_torch, to_mlx
    from mlxport.port.in_memory import _instance

    started = time.monotonic()
    info: dict[str, Any] = {}
    try:
        port = build(captured)
        info["build_seconds"] = round(time.monotonic() - started, 2)
        info["nodes"] = sum(port.ops.values())
        info["ops"] = len(port.ops)
        info["fusions"] = sorted({f.name for f in port.fusions if not f.declined})
        info["lines"] = port.source.count("\n")
        ported = _instance(port)
        got = [
            leaf for leaf in pytree.tree_leaves(_plain(ported(**to_mlx(_copied(given))))) if isinstance(leaf, mx.array)
        ]
        if len(got) != len(wanted):
            return {**info, "status": "error", "reason": f"{len(got)} outputs, not {len(wanted)}"}
        worst = 0.0
        for index, (ours, theirs) in enumerate(zip(got, wanted, strict=True)):
            reference = from_torch(theirs)
            if ours.shape != reference.shape or ours.dtype != reference.dtype:
                found = f"output {index} is {ours.shape} {ours.dtype}, not {reference.shape} {reference.dtype}"
                return {**info, "status": "error", "reason": found}
            difference = _difference(ours, reference)
            worst = difference if not difference <= worst else worst
        info["error"] = float(f"{worst:.2e}")
        return {**info, "status": "pass" if worst <= TOLERANCE else "wrong"}
    except MissingOps as error:
        names = sorted({f"{m.key}: {m.reason}" if m.reason else m.key for m in error.missing})
        return {**info, "status": "unsupported", "reason": "; ".join(names)}
    except Exception as error:
        return {**info, "status": "error", "reason": _brief(error), "trace": _trace(error)}


def _difference(ours: Any, theirs: Any) -> float:
    """Largest absolute difference, relative to the largest finite value; equal infinities and NaNs do not count."""
    import numpy as np

    if not theirs.size:
        return 0.0
    arrays = (np.array(x) for x in (ours, theirs))
    a, b = (x.astype(np.complex128 if np.iscomplexobj(x) else np.float64) for x in arrays)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    scale = np.abs(b[np.abs(b) < 1e30]).max(initial=1e-6)  # larger ones stand for minus infinity
    return float(np.where(same, 0, np.abs(a - b)).max() / scale)


def _brief(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:260]}"


def _trace(error: BaseException) -> list[str]:
    frames = traceback.extract_tb(error.__traceback__)
    own = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames if "torch/" not in f.filename]
    return own[-4:]


def worker(case: tuple[str, str, str], dynamic: bool, pipe: Any) -> None:
    """Run one case in a process of its own and send its result."""
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    resource.setrlimit(resource.RLIMIT_AS, (4 * MEMORY, 4 * MEMORY))
    threading.stack_size(512 << 20)
    box: list[Any] = []

    def work() -> None:
        try:
            box.append(run_case(*case, dynamic))
        except BaseException as error:
            box.append({"type": case[0], "part": case[1], "class": case[2], "status": "error", "reason": _brief(error),
                        "trace": _trace(error)})  # fmt: skip

    started = time.monotonic()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    pipe.send({**box[0], "seconds": round(time.monotonic() - started, 1)})
    pipe.close()
    os._exit(0)


def run_one(context: Any, case: tuple[str, str, str], timeout: float) -> dict[str, Any]:
    """The result of one case; with fixed sizes if torch.export takes too long to reason about dynamic ones."""
    result = _run_one(context, case, True, timeout)
    return _run_one(context, case, False, timeout) if "over" in result.get("reason", "")[:5] else result


def _run_one(context: Any, case: tuple[str, str, str], dynamic: bool, timeout: float) -> dict[str, Any]:
    """The result of one case, or what became of its process."""
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=worker, args=(case, dynamic, theirs))
    process.start()
    theirs.close()
    result = {"type": case[0], "part": case[1], "class": case[2], "status": "error"}
    deadline = time.monotonic() + timeout
    while True:
        if ours.poll(0.5):
            try:
                result = ours.recv()
            except EOFError:
                result["reason"] = "the process died"
            break
        if _memory(process.pid) > MEMORY:
            result["reason"] = f"over {MEMORY >> 30} GB of memory"
            break
        if time.monotonic() > deadline:
            result["reason"] = f"over {timeout:.0f} s"
            break
    process.kill()
    process.join()
    return result


def _memory(pid: int | None) -> int:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    match = re.search(r"VmRSS:\s+(\d+)", text)
    return int(match[1]) << 10 if match else 0


def load(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Results of earlier runs, the last of each case."""
    if not path.exists():
        return {}
    rows = map(json.loads, path.read_text().splitlines())
    return {(row["type"], row["part"]): row for row in rows}


def table(results: dict[tuple[str, str], dict[str, Any]], total: int) -> str:
    """The committed page; ``total``: how many cases there are."""
    rows = [results[key] for key in sorted(results)]
    exported = [row for row in rows if not row["status"].startswith("not-")]
    passed = [row for row in exported if row["status"] == "pass"]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("mlx", "torch", "transformers"))
    share = 100 * len(passed) / max(len(exported), 1)
    lines = [
        "# Models",
        "",
        "Tiny random models of every type that transformers has (base model and main head), ported and compared with",
        f"torch in float32; parity is an error of at most {TOLERANCE:.0e} of the output's scale. Made by",
        f"`make sweep-models` with {versions}.",
        "",
        f"{len(passed)} of {len(exported)} that run in torch and export reach parity ({share:.1f}%).",
        *([f"Tried so far: {len(rows)} of {total}."] if len(rows) < total else []),
        f"{sum(r['status'] == 'not-eager' for r in rows)} more do not run from a config derived like this, "
        f"{sum(r['status'] == 'not-exported' for r in rows)} are refused by torch.export, "
        f"{sum(r['status'] == 'not-determined' for r in rows)} pick among near ties: torch differs from itself.",
        "",
        "| model type | class | status | nodes | ops | lines | fusions | error | reason |",
        "|---|---|---|---:|---:|---:|---|---:|---|",
    ]
    for row in rows:
        error = f"{row['error']:.1e}" if "error" in row else ""
        reason = re.sub(r"\S*/site-packages/", "", row.get("reason", "")).replace("|", "\\|")[:160]
        counts = (row.get(key, "") for key in ("nodes", "ops", "lines"))
        cells = (row["type"], row["class"], row["status"], *counts, ", ".join(row.get("fusions", ())), error, reason)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the sweep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", help="model types")
    parser.add_argument("--part", choices=("base", "head", "diffusers", "all"), default="all")
    parser.add_argument("--status", nargs="*", help="only what has one of these statuses in --json, again")
    parser.add_argument("--json", type=Path, default=Path(".sweep-models.jsonl"), help="results, appended to")
    parser.add_argument("--output", type=Path, help="write the table here (markdown)")
    parser.add_argument("--timeout", type=float, default=120, help="seconds per model")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    done = load(arguments.json)
    todo = [(name, "diffusers", case[0]) for name, case in diffusion.CASES.items() if find_spec("diffusers")]
    todo = [case for case in [*cases.cases(), *todo] if arguments.part in ("all", case[1])]
    total = len(todo)
    if arguments.only:
        todo = [case for case in todo if case[0] in arguments.only]
    elif arguments.status is not None:
        todo = [case for case in todo if done.get(case[:2], {}).get("status") in arguments.status]
    else:
        todo = [case for case in todo if case[:2] not in done]
        todo.sort(key=lambda case: hashlib.md5(repr(case).encode()).digest())  # a run cut short is a fair sample
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with ThreadPoolExecutor(arguments.workers) as pool, arguments.json.open("a") as log:
        for row in pool.map(lambda case: run_one(context, case, arguments.timeout), todo):
            done[row["type"], row["part"]] = row
            log.write(json.dumps(row) + "\n")
            log.flush()
            number = f"{row['error']:.1e}" if "error" in row else row.get("reason", "")
            print(
                f"{row['type']:26} {row['part']:5} {row['status']:12} {row.get('seconds', ''):5} {number}", flush=True
            )
    if arguments.output:
        arguments.output.write_text(table(done, total))


if __name__ == "__main__":
    main()
