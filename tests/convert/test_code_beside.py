"""Code beside a model that mlx-lm or transformers has: never run, and no trust is asked for it."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import mlxport
from checkpoints import write_llama
from mlxport.errors import SourceError, UnsafeError
from mlxport.layouts.table import refuse_unknown_code
from mlxport.run.tasks.picture_inputs import load_image_processor
from mlxport.run.tasks.recognizer import feature_extractor

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


def loading_calls() -> Iterator[tuple[str, set[str]]]:
    """Where transformers loads by a name or a folder, and the keywords that it is given."""
    package = Path(mlxport.__file__).parent
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if re.search(r"Auto\w*\.from_(pretrained|config)$|transformers\.pipeline$|SentenceTransformer$", called):
                assert isinstance(node, ast.Call)
                keywords = {name for item in node.keywords for name in [item.arg or ast.unparse(item.value)]}
                yield f"{path.relative_to(package)}:{node.lineno}", keywords


def test_transformers_is_always_told_whether_code_is_trusted() -> None:
    """It asks on the terminal where it is not, waits for an answer, and a "y" runs the code."""
    calls = dict(loading_calls())
    assert len(calls) >= 6
    assert [place for place, given in calls.items() if not any("trust_remote_code" in name for name in given)] == []


PROCESSORS = {
    "AutoImageProcessor": ("image_processor_type", load_image_processor),
    "AutoFeatureExtractor": ("feature_extractor_type", feature_extractor),
}


@pytest.mark.parametrize("kind", PROCESSORS)
def test_a_processor_that_is_code_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    field, load = PROCESSORS[kind]
    settings = {"auto_map": {kind: "processing_x.X"}, field: "X"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "x"}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    (tmp_path / "processing_x.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(SourceError, match="trust_remote_code|custom code"):
        load(tmp_path)
    assert not (tmp_path / "ran").exists()
