from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from quality_models import edit_config, save_source

import mlxport as package
from checkpoints import save, weights, write_llama, write_side_files
from refusals import Case, check_error

FILES = ["report.html", "report.json"]


@pytest.fixture
def copied(outputs, tmp_path):
    """An output that may be written to."""
    return Path(shutil.copytree(outputs("llama", quantize=4), tmp_path / "llama-4bit"))


def test_the_report_of_a_folder(mlxport, sources, copied):
    result = mlxport(
        "report", copied, "--against", sources("llama"), "--device", "M2 8GB", "--tokens", "200", "--quiet"
    )
    assert result.code == 0, result
    assert "it predicts the same next token" in result.out and f"report: {copied / 'report.html'}" in result.out
    data = json.loads((copied / "report.json").read_text())
    page = (copied / "report.html").read_text()
    stored = sum(path.stat().st_size for path in copied.glob("*.safetensors"))
    assert stored - 20_000 < data["bytes"] < stored
    assert data["bits_per_weight"] == pytest.approx(8 * data["bytes"] / data["parameters"], abs=1e-3)
    assert data["quality"]["kl_mean"] > 0 and 0 < data["quality"]["top1"] < 1
    assert data["quality"]["kl_median"] < data["quality"]["kl_p99"] <= data["quality"]["kl_max"]
    assert [layer["module"] for layer in data["layers"]] == ["model.layers.0", "model.layers.1"]
    assert len(data["modules"]) == 16 and all(0 < module["error"] < 0.3 for module in data["modules"])
    assert data["speed"]["tps"] > 0 and data["predicted"]["machine"] == "M2 8GB"
    assert len(data["samples"]) == 4
    record = json.loads((copied / "mlxport.json").read_text())
    assert data["provenance"]["source_files"] == record["source"]["files"]
    for shown in ("Quality report", "M2 8GB", "model.layers.1.mlp.down_proj", data["text"]["sha256"], "<svg"):
        assert shown in page
    assert not list(copied.glob(".report*"))


def test_json_says_what_the_file_says(mlxport, sources, copied):
    result = mlxport("report", copied, "--against", sources("llama"), "--tokens", "100", "--json")
    assert (result.code, result.err) == (0, "")
    assert json.loads(result.out) == json.loads((copied / "report.json").read_text())


def test_the_original_on_record_is_taken_while_it_is_the_same(mlxport, tmp_path):
    source = save_source("llama", tmp_path / "source")
    output = tmp_path / "out"
    package.convert(source, output, verify="none", quantize=4)
    assert mlxport("report", output, "--tokens", "100", "--output", tmp_path / "page", "--quiet").code == 0
    assert sorted(path.name for path in (tmp_path / "page").iterdir()) == FILES
    assert not (output / "report.html").exists()

    file = source / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    named = ("does not hold the weights that were converted (model.safetensors)", "--against SRC")
    check_error(mlxport("report", output, "--tokens", "100"), Case("changed", None, named, code=2))
    result = mlxport("report", output, "--against", source, "--tokens", "100", "--quiet")
    assert result.code == 0 and "note: " in result.out and "another version of the original" in result.out

    shutil.rmtree(source)
    named = ("the original that was recorded cannot be opened", "--against SRC")
    check_error(mlxport("report", output, "--tokens", "100"), Case("gone", None, named, code=2))
    (output / "mlxport.json").write_text("{}")
    named = ("does not say what it was converted from", "--against SRC")
    check_error(mlxport("report", output, "--tokens", "100"), Case("no record", None, named, code=2))


def test_convert_puts_the_report_into_the_output(mlxport, sources, tmp_path):
    output = tmp_path / "out"
    arguments = ("convert", sources("llama"), output, "-q", "4", "--verify", "none", "--quiet")
    result = mlxport(*arguments, "--report", "--report-device", "M4 16GB")
    assert result.code == 0, result
    assert f"report: {output / 'report.html'}" in result.out
    data = json.loads((output / "report.json").read_text())
    # the title is the model's, whatever the folder is called
    assert (data["name"], data["folder"], data["predicted"]["machine"]) == (sources("llama").name, "out", "M4 16GB")
    assert f'<h1 dir="auto">{sources("llama").name}</h1>' in (output / "report.html").read_text()
    assert str(tmp_path / "out.partial") not in (output / "report.html").read_text()
    again = mlxport("report", output, "--json", "--tokens", "4096")
    for figure in ("kl_mean", "kl_p99", "top1", "perplexity", "tokens"):
        assert json.loads(again.out)["quality"][figure] == pytest.approx(data["quality"][figure], rel=1e-6)
    # A folder with a report is still a model folder, and may be replaced by one without.
    assert mlxport(*arguments, "--overwrite").code == 0
    assert not (output / "report.html").exists()
    result = mlxport(*arguments, "--overwrite", "--report", "--json")
    assert json.loads(result.out)["quality"]["kl_mean"] == pytest.approx(data["quality"]["kl_mean"], rel=1e-6)


def test_a_report_changes_nothing_else(sources, tmp_path):
    for name, report in (("plain", False), ("reported", True)):
        package.convert(sources("llama"), tmp_path / name, quantize=4, verify="none", report=report)
    plain, reported = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("plain", "reported"))
    assert sorted(set(reported) - set(plain)) == FILES
    assert {name: reported[name] for name in plain} == plain


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("unknown device", ("--device", "M9 8GB"), ("names no chip of the table", "M2")),
        ("few tokens", ("--tokens", "10"), ("--tokens 10",)),
        ("no text", ("--text", "/nowhere/text"), ("cannot read --text /nowhere/text",)),
        ("binary text", ("--text", "binary"), ("is not text: byte 1 is not UTF-8",)),
        ("empty text", ("--text", "empty"), ("is empty",)),
        ("short text", ("--text", "short"), ("the text makes 10 tokens",)),
    ],
)
def test_options_that_cannot_apply(mlxport, sources, copied, tmp_path, monkeypatch, name, options, named):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "binary").write_bytes(b"a\xff\x00")
    (tmp_path / "empty").write_bytes(b"\n")
    (tmp_path / "short").write_text("ten bytes.")
    check_error(mlxport("report", copied, "--against", sources("llama"), *options), Case(name, None, named, code=2))
    assert not (copied / "report.html").exists()


def test_folders_that_cannot_be_compared(mlxport, sources, outputs, copied, tmp_path):
    llama = sources("llama")
    refused = (
        ((llama, "--against", llama), ("is not an MLX model",), 1),
        ((copied, "--against", sources("qwen2")), ("was not made from", "qwen2"), 2),
        ((tmp_path / "absent", "--against", llama), ("is no folder to write a report into",), 2),
        ((copied, "--against", tmp_path / "absent"), ("absent: no such folder",), 1),
    )
    for arguments, named, code in refused:
        check_error(mlxport("report", *arguments), Case("folders", None, named, code=code))
    for file in copied.glob("token*"):
        file.unlink()
    bare = shutil.copytree(llama, tmp_path / "bare", ignore=shutil.ignore_patterns("token*", "special*"))
    check_error(mlxport("report", copied, "--against", bare), Case("tokenizer", None, ("no tokenizer that loads",)))
    edit_config(copied, model_file="model.py")
    named = ("code of its own", "mlxport verify")
    check_error(mlxport("report", copied, "--against", llama), Case("a port", None, named))


def test_a_conversion_that_cannot_be_measured_is_refused_before_it_is_made(mlxport, sources, tmp_path):
    llama, output = sources("llama"), tmp_path / "out"
    bare = shutil.copytree(llama, tmp_path / "bare", ignore=shutil.ignore_patterns("token*", "special*"))
    refused = (
        ((bare, output, "--report"), ("no tokenizer that loads",), 1),
        ((llama, output, "--report", "--layout", "generated", "--no-cache"), ("code of its own",), 2),
        ((llama, output, "--report-device", "M2 8GB"), ("has no effect without --report",), 2),
        ((llama, output, "--report", "--report-device", "Z1"), ("names no chip",), 2),
    )
    for arguments, named, code in refused:
        check_error(mlxport("convert", *arguments, "--verify", "none"), Case("convert", None, named, code=code))
        assert not output.exists() and not output.with_name("out.partial").exists()


def test_nan_is_named_and_nothing_is_written(mlxport, tmp_path):
    source, output = tmp_path / "source", tmp_path / "out"
    write_side_files(source)
    broken = weights()
    broken["model.layers.0.mlp.up_proj.weight"][0, 0] = np.nan
    save(source / "model.safetensors", broken, "F32")
    package.convert(source, output, verify="none")
    named = ("NaN or infinite", "model.layers.0.mlp.up_proj")
    check_error(mlxport("report", output, "--against", source), Case("nan", None, named))
    assert not (output / "report.html").exists()


def test_a_folder_that_cannot_be_written(mlxport, sources, copied, tmp_path):
    (tmp_path / "file").write_text("")
    result = mlxport("report", copied, "--against", sources("llama"), "--tokens", "50", "--output", tmp_path / "file")
    check_error(result._replace(err="\n".join(result.err.splitlines()[-2:])), Case("file", None, ("cannot write",)))


def test_an_output_of_another_converter_is_measured_too(mlxport, sources, copied):
    (copied / "mlxport.json").unlink()
    result = mlxport("report", copied, "--against", sources("llama"), "--tokens", "50", "--quiet")
    assert result.code == 0 and "no record of what it was converted from" in result.out


@pytest.mark.parametrize(
    "record", [{"output": []}, {"source": 1, "options": "x", "output": {"files": [1]}, "verified": "no"}]
)
def test_a_record_may_hold_anything(mlxport, sources, copied, record):
    (copied / "mlxport.json").write_text(json.dumps(record))
    result = mlxport("report", copied, "--against", sources("llama"), "--tokens", "50", "--quiet")
    assert result.code == 0, result
    assert json.loads((copied / "report.json").read_text())["provenance"]["verified"] is False


def test_a_source_in_three_files_of_bfloat16(mlxport, tmp_path):
    source = write_llama(tmp_path / "source")
    package.convert(source, tmp_path / "out", verify="none", quantize="mxfp4")
    result = mlxport("report", tmp_path / "out", "--json", "--tokens", "64")
    data = json.loads(result.out)
    assert data["quantization"][0]["setting"] == "mxfp4 4 bits, group size 32"
    assert len(data["provenance"]["source_files"]) == 3 and data["notes"] == []
