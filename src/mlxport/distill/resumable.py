"""Distil a finished output in its workspace, so that an interrupted run goes on and the record stays true."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from mlxport.distill.changed_tensors import RESULT, load_result, rewrite, save_result
from mlxport.distill.distill_settings import DistillReport, DistillSettings
from mlxport.distill.distillation import distill
from mlxport.layouts.conversion import TracedModel
from mlxport.output.workspace import Workspace

__all__ = ["distill_output"]

_FOLDER = "distilled"


def distill_output(
    workspace: Workspace,
    model: TracedModel,
    config: Mapping[str, Any],
    settings: DistillSettings,
    *,
    text: str | None = None,
    memory_limit: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> DistillReport:
    """Train the output, then write what changed into its shards; errors are those of ``distill``.

    What was found is on disk before a shard is touched. A run that ends in between leaves some shards changed and some
    not, and the next one writes it into all of them.

    Args:
        workspace: Holds the finished shards, config.json and the tokenizer.
        model: The original.
        config: The output's configuration.
        settings: How to train.
        text: What to train on, see ``distill``.
        memory_limit: Bytes that it may take.
        say: Called with a line for each step of the work.
    """
    work = workspace.folder / _FOLDER
    kept = load_result(work / RESULT)
    if kept is None:
        report, arrays = distill(
            workspace.folder, model, config, settings, work, text=text,
            memory_limit=memory_limit, say=say,
        )  # fmt: skip
        save_result(work / RESULT, arrays, json.dumps(report.to_json()))
    else:
        arrays, facts = kept
        known = json.loads(facts)
        report = DistillReport(**{**known, "modules": tuple(known["modules"])})
    for name, written in workspace.done.items():
        changed = rewrite(workspace.folder / name, arrays, written)
        if changed != written:
            workspace.record(name, changed)
    return report
