"""Every op of torch's OpInfo database through the port, compared with torch: writes docs/ops.md.

python benchmarks/sweep_ops.py                     everything, a table
python benchmarks/sweep_ops.py --only add softmax  some entries, printed
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
    from conformance import check_entry, entry_name
    from torch.testing._internal.common_methods_invocations import op_db

    index, dtype = task
    entry = op_db[index]
    name = entry_name(entry)

    def late(*_: object) -> None:
        raise TimeoutError("over 300 s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(300)
    try:
        outcome = check_entry(entry, getattr(torch, dtype))
        return name, dtype, outcome.status, outcome.reason
    except Exception as error:  # a sweep goes on and lists what happened
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = (str(error).splitlines() or [""])[0]
        return name, dtype, "error", f"{type(error).__name__}: {text} ({Path(where.filename).name}:{where.lineno})"
    finally:
        signal.alarm(0)


def main() -> None:
    """Run the sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="names of entries; a trailing * matches the beginning")
    parser.add_argument("--dtype", nargs="*", default=["float32"])
    parser.add_argument("--json", type=Path, help="write the outcomes here")
    parser.add_argument("--failures", action="store_true", help="print only what does not pass")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    import torch
    from conformance import LEFT_OUT, entry_name
    from torch.testing._internal.common_methods_invocations import op_db

    def wanted(entry: object) -> bool:
        name = entry_name(entry)
        if name in LEFT_OUT:
            return False
        return not options.only or any(
            name.startswith(o[:-1]) if o.endswith("*") else o in (name, entry.name) for o in options.only
        )

    tasks = [
        (index, dtype)
        for index, entry in enumerate(op_db)
        for dtype in options.dtype
        if wanted(entry) and entry.supports_dtype(getattr(torch, dtype), "cpu")
    ]
    outcomes = []
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with get_context("spawn").Pool(options.workers, maxtasksperchild=60) as pool:
        for name, dtype, status, reason in pool.imap(_check, tasks):
            outcomes.append((name, dtype, status, reason))
            if not options.failures or status not in ("pass", "unexported"):
                print(f"{status:12} {name:45} {dtype:8} {reason}", flush=True)
    counted = [outcome for outcome in outcomes if outcome[2] != "unexported"]
    passed = sum(outcome[2] == "pass" for outcome in counted)
    print(f"{passed} of {len(counted)} entries pass ({len(outcomes) - len(counted)} that torch does not export)")
    if options.json:
        options.json.write_text(json.dumps(outcomes, indent=1))


if __name__ == "__main__":
    main()
