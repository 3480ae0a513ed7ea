"""The peak memory of real generations on the CPU, in a process of its own: FOLDER, then the options of each as JSON."""

from __future__ import annotations

import json
import sys


def main() -> None:
    from pathlib import Path

    import mlx.core as mx

    mx.set_default_device(mx.cpu)  # before mlx-lm makes its stream
    from mlx_lm.generate import generate_step
    from mlx_lm.utils import load_model

    model, _ = load_model(Path(sys.argv[1]))
    for run in json.loads(sys.argv[2]):
        mx.clear_cache()
        mx.reset_peak_memory()
        prompt = mx.arange(run.pop("context")) % 64
        for _ in generate_step(prompt, model, max_tokens=3, **run):
            pass
        mx.synchronize()
        print(mx.get_peak_memory())


if __name__ == "__main__":
    main()
