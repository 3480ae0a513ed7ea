"""Code beside a model that mlx-lm or transformers has: never run, and no trust is asked for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import mlxport
from checkpoints import write_llama
from mlxport.errors import UnsafeError
from mlxport.layouts.table import refuse_unknown_code

AUTO = {"AutoConfig": "configuration_x.C", "AutoModelForCausalLM": "modeling_x.M"}


def test_code_of_a_known_model_is_not_run_and_not_carried(tmp_path: Path) -> None:
    source, out = write_llama(tmp_path / "in"), tmp_path / "out"
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"auto_map": AUTO}))
    for name in ("configuration_x.py", "modeling_x.py"):
        (source / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    report = mlxport.convert(source, out)
    assert report.parity is not None and report.parity.passed
    assert not (tmp_path / "ran").exists() and not list(out.glob("*.py"))
    assert "auto_map" not in json.loads((out / "config.json").read_text())
    assert mlxport.verify(out, source).passed
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("model_type", "known"),
    [("llama", True), ("deepseek_v3", True), ("bert", True), ("Klear", True), ("kimi_x", False), ("zzz", False)],
)
def test_trust_is_asked_for_where_nobody_has_the_model(model_type: str, known: bool) -> None:
    refuse_unknown_code({"model_type": model_type}, "here")
    config = {"model_type": model_type, "auto_map": AUTO}
    if known:
        refuse_unknown_code(config, "here")
    else:
        with pytest.raises(UnsafeError, match="auto_map"):
            refuse_unknown_code(config, "here")
