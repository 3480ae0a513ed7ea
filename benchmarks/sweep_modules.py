"""Every module of torch's ModuleInfo database through the port, compared with torch.

python benchmarks/sweep_modules.py                     everything
python benchmarks/sweep_modules.py --only nn.Conv1d    some modules
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "graph"))
warnings.simplefilter("ignore")


def _check(task: tuple[int, str]) -> tuple[str, str, str, str]:
    import signal
    import traceback

    import torch

    torch.set_num_threads(1)
    from modules_conformance import check_module
    from torch.testing._internal.common_modules import module_db

    index, dtype = task
    info = module_db[index]

    def late(*_: object) -> None:
        raise TimeoutError("over 900 s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(900)
    try:
        outcome = check_module(info, getattr(torch, dtype))
        return info.name, dtype, outcome.status, outcome.reason
    except Exception as error:  # a sweep goes on and lists what happened
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = (str(error).splitlines() or [""])[0]
        return info.name, dtype, "error", f"{type(error).__name__}: {text} ({Path(where.filename).name}:{where.lineno})"
    finally:
        signal.alarm(0)


def main() -> None:
    """Run the sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="names such as nn.Conv1d; a trailing * matches the beginning")
    parser.add_argument("--dtype", nargs="*", default=["float32"])
    parser.add_argument("--json", type=Path, help="write the outcomes here")
    parser.add_argument("--failures", action="store_true", help="print only what does not pass")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    import torch
    from torch.testing._internal.common_modules import module_db

    def wanted(name: str) -> bool:
        only = options.only
        return not only or any(name.startswith(o[:-1]) if o.endswith("*") else o == name for o in only)

    tasks = [
        (index, dtype)
        for index, info in enumerate(module_db)
        for dtype in options.dtype
        if wanted(info.name) and getattr(torch, dtype) in info.dtypes
    ]
    outcomes = []
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with get_context("spawn").Pool(options.workers, maxtasksperchild=30) as pool:
        for name, dtype, status, reason in pool.imap(_check, tasks):
            outcomes.append((name, dtype, status, reason))
            if not options.failures or status not in ("pass", "unexported"):
                print(f"{status:12} {name:30} {dtype:8} {reason}", flush=True)
    counted = [outcome for outcome in outcomes if outcome[2] != "unexported"]
    passed = sum(outcome[2] == "pass" for outcome in counted)
    print(f"{passed} of {len(counted)} modules pass ({len(outcomes) - len(counted)} that torch does not export)")
    if options.json:
        options.json.write_text(json.dumps(outcomes, indent=1))


if __name__ == "__main__":
    main()
