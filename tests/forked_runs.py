"""Runs of the command line as forks of one warm process, killed at a chosen moment; a request and an answer a line.

A request is ``{"arguments": [...], "watch": FOLDER, "kill_at": N, "kill_on": TEXT, "delay": SECONDS}``: SIGKILL strikes
before the N-th time that the run opens, makes, renames or removes anything below FOLDER, or the first time that it does
so with a name that holds TEXT, or after so many seconds; with none of them the run ends by itself.
The answer is ``{"code": exit code, -9 when killed, "events": [...], "stderr": TEXT}``.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import tempfile
import time
from typing import Any

from checkpoints import config

# What a conversion imports. Nothing is computed before a fork, so MLX has no threads that it would lose.
WARM = (
    "huggingface_hub.repocard",
    "mlx_lm.models.llama",
    "mlxport.output.card",
    "mlxport.convert.convert",
    "mlxport.parity",
    "mlxport.cli.show.conversion_outcome",
    "mlxport.output.shards",
    "rich.table",
    "tokenizers",
)
EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}


def child(request: dict[str, Any], log: int, errors: int) -> None:
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in EVENTS or not str(arguments[0]).startswith(request["watch"]):
            return
        name = os.path.basename(str(arguments[0]))
        if count == request.get("kill_at") or request.get("kill_on", "\0") in name:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1
        os.write(log, f"{event} {name}\n".encode())

    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(errors, 2)
    sys.addaudithook(hook)
    from mlxport.cli.app import main

    main(request["arguments"])


def serve() -> None:
    import mlx.core as mx

    mx.set_default_device(mx.cpu)  # Metal does not live through a fork
    for name in WARM:
        importlib.import_module(name)
    from mlxport.layouts.mlx_lm.opening import check_supported

    check_supported(config())

    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryFile() as log, tempfile.TemporaryFile() as errors:
            pid = os.fork()
            if not pid:
                try:
                    child(request, log.fileno(), errors.fileno())
                except SystemExit as end:
                    sys.stderr.flush()
                    os._exit(int(end.code or 0))
                finally:
                    os._exit(99)
            if request.get("delay") is not None:
                time.sleep(request["delay"])
                os.kill(pid, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            log.seek(0)
            errors.seek(0)
            answer = {"code": code, "events": log.read().decode().splitlines(), "stderr": errors.read().decode()}
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
