"""Every op of torch's OpInfo database through the port, compared with torch.

python benchmarks/sweep_ops.py                                       float32, a line per entry
python benchmarks/sweep_ops.py --only add softmax --dtype int64      some entries
python benchmarks/sweep_ops.py --dtype float32 int64 bool --json ops.json
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "tests" / "graph")]
warnings.simplefilter("ignore")

from sweep_pool import failure, outcomes  # noqa: E402

_LIMIT = 300  # seconds for one entry


def _check(task: tuple[int, str]) -> tuple[str, str]:
    import torch

    torch.set_num_threads(1)
    from conformance import check_entry
    from torch.testing._internal.common_methods_invocations import op_db

    index, dtype = task
    try:
        outcome = check_entry(op_db[index], getattr(torch, dtype))
        return outcome.status, outcome.reason
    except Exception as error:  # a sweep goes on and lists what happened
        return "error", failure(error)


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
        for dtype in options.dtype
        for index, entry in enumerate(op_db)
        if wanted(entry) and entry.supports_dtype(getattr(torch, dtype), "cpu")
    ]
    found = []
    for (index, dtype), outcome, why in outcomes(_check, tasks, options.workers, _LIMIT):
        name = entry_name(op_db[index])
        status, reason = outcome or ("error", why)
        found.append((name, dtype, status, reason))
        if not options.failures or status not in ("pass", "unexported"):
            print(f"{status:12} {name:45} {dtype:8} {reason}", flush=True)
        if options.json:
            options.json.write_text(json.dumps(found, indent=1))
    counted = [row for row in found if row[2] != "unexported"]
    passed = sum(row[2] == "pass" for row in counted)
    print(f"{passed} of {len(counted)} entries pass ({len(found) - len(counted)} that torch does not export)")


if __name__ == "__main__":
    main()
