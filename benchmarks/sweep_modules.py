"""Every module of torch's ModuleInfo database through ``mlxport.port``, compared with torch.

python benchmarks/sweep_modules.py                              a line per module
python benchmarks/sweep_modules.py --only nn.Conv1d nn.Lazy*    some modules
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

_LIMIT = 600  # seconds for one module


def _check(index: int) -> tuple[str, str]:
    import torch

    torch.set_num_threads(1)
    from modules_conformance import check_module
    from torch.testing._internal.common_modules import module_db

    try:
        outcome = check_module(module_db[index])
        return outcome.status, outcome.reason
    except Exception as error:  # a sweep goes on and lists what happened
        return "error", failure(error)


def main() -> None:
    """Run the sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="names such as nn.Conv1d; a trailing * matches the beginning")
    parser.add_argument("--json", type=Path, help="write the outcomes here")
    parser.add_argument("--failures", action="store_true", help="print only what does not pass")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    import torch
    from torch.testing._internal.common_modules import module_db

    def wanted(name: str) -> bool:
        only = options.only
        return not only or any(name.startswith(o[:-1]) if o.endswith("*") else o == name for o in only)

    tasks = [i for i, info in enumerate(module_db) if wanted(info.name) and torch.float32 in info.dtypes]
    found = []
    for index, outcome, why in outcomes(_check, tasks, options.workers, _LIMIT):
        name = module_db[index].name
        status, reason = outcome or ("error", why)
        found.append((name, "float32", status, reason))
        if not options.failures or status not in ("pass", "unexported"):
            print(f"{status:12} {name:30} {reason}", flush=True)
        if options.json:
            options.json.write_text(json.dumps(found, indent=1))
    counted = [row for row in found if row[2] != "unexported"]
    passed = sum(row[2] == "pass" for row in counted)
    print(f"{passed} of {len(counted)} modules pass ({len(found) - len(counted)} that torch does not export)")


if __name__ == "__main__":
    main()
