"""Whole conversions through the command line: what is written, recorded, carried, loaded and verified."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoints import INDEX, hash_tree, leftovers, read_raw, save, weights, write_llama, write_torch_llama
from command import environment, finish, start, stop_after

PLAIN = ("--verify", "none")
SHARDED = (*PLAIN, "--max-shard-size", "50KB")


def test_dry_run_writes_nothing(source, tmp_path, mlxport):
    before = hash_tree(tmp_path)
    result = mlxport("convert", source, tmp_path / "out", "--dry-run", "-q", "4")
    assert result.code == 0 and "nothing was written" in result.out
    report = json.loads(mlxport("convert", source, tmp_path / "out", "--dry-run", "-q", "4", "--json").out)
    assert hash_tree(tmp_path) == before
    assert report["dry_run"] and report["plan"]["disk_free_bytes"] > 0
    assert mlxport("convert", source, tmp_path / "out", *PLAIN, "-q", "4").code == 0
    real = sum(len(path.read_bytes()) for path in (tmp_path / "out").glob("*.safetensors"))
    assert report["plan"]["bytes"] < real < report["plan"]["disk_needed_bytes"]


def test_a_link_to_a_source_is_followed(source, tmp_path, mlxport):
    (tmp_path / "link").symlink_to(source)
    assert mlxport("convert", tmp_path / "link", tmp_path / "out", *PLAIN).code == 0


# --- what is written ------------------------------------------------------------------------------------------------


def test_side_files_are_carried_byte_for_byte(source, converted):
    carried = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"}
    for name in carried:
        assert (converted / name).read_bytes() == (source / name).read_bytes()
    ours = {"config.json", "mlxport.json", "README.md", INDEX, "model.safetensors"}
    assert {path.name for path in converted.iterdir()} == carried | ours


def test_code_is_carried_only_when_trusted(source, tmp_path, mlxport):
    (source / "modeling.py").write_text("raise SystemExit('this ran')\n")
    assert mlxport("convert", source, tmp_path / "out", *PLAIN).code == 0
    assert not (tmp_path / "out/modeling.py").exists()
    assert mlxport("convert", source, tmp_path / "trusted", *PLAIN, "--trust-remote-code").code == 0
    assert (tmp_path / "trusted/modeling.py").exists()


def test_the_record_is_true(source, tmp_path, mlxport):
    out = tmp_path / "out"
    assert mlxport("convert", source, out, *SHARDED, "-q", "8", "--dtype", "float32").code == 0
    record = json.loads((out / "mlxport.json").read_text())

    def checked(folder: Path, files: dict) -> set[str]:
        for name, entry in files.items():
            content = (folder / name).read_bytes()
            assert entry == {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        return set(files)

    assert checked(source, record["source"]["files"]) == {p.name for p in source.glob("*.safetensors")}
    assert checked(out, record["output"]["files"]) == {p.name for p in out.glob("*.safetensors")}
    assert record["source"]["name"] == str(source)
    assert record["options"]["dtype"] == record["output"]["dtype"] == "float32"
    assert record["options"]["quantize"]["spec"] == {"mode": "affine", "bits": 8, "group_size": 64}
    assert record["output"]["parameters"] == sum(array.size for array in weights().values())
    stored = sum(len(read_raw(path)[1]) for path in out.glob("*.safetensors"))
    assert record["output"]["bits_per_weight"] == round(stored * 8 / record["output"]["parameters"], 4)
    assert {"mlxport", "mlx", "mlx-lm", "transformers"} <= set(record["versions"])
    assert record["verified"] is False and record["not_verified"] == "not verified: --verify none"


def test_shards_and_index_agree(source, tmp_path, mlxport):
    out = tmp_path / "out"
    assert mlxport("convert", source, out, *SHARDED).code == 0
    index = json.loads((out / INDEX).read_text())
    files = {path.name: read_raw(path) for path in out.glob("*.safetensors")}
    assert len(files) == 5
    assert index["weight_map"] == {name: f for f, (head, _) in files.items() for name in head if name != "__metadata__"}
    assert index["metadata"]["total_size"] == sum(len(data) for _, data in files.values())
    assert index["metadata"]["total_parameters"] == sum(array.size for array in weights().values())
    largest = max(array.nbytes // 2 for array in weights().values())
    assert all(len(data) <= max(50_000, largest) for _, data in files.values())
    assert all(head["__metadata__"] == {"format": "mlx"} for head, _ in files.values())


def test_a_stray_file_changes_nothing(source, converted, tmp_path, mlxport):
    save(source / "model-old.safetensors", weights(seed=9))
    result = mlxport("convert", source, tmp_path / "out", *PLAIN)
    assert "model-old.safetensors is not part of the checkpoint" in result.out
    assert (tmp_path / "out/model.safetensors").read_bytes() == (converted / "model.safetensors").read_bytes()


@pytest.mark.parametrize("shards", [1, 3])
def test_torch_files_give_the_same_bytes(shards, converted, tmp_path, mlxport):
    folder = write_torch_llama(tmp_path / "torch", shards=shards)
    assert mlxport("convert", folder, tmp_path / "out", *PLAIN).code == 0
    for name in ("model.safetensors", "config.json", INDEX, "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (converted / name).read_bytes(), name


def test_how_the_source_is_cut_changes_nothing(converted, tmp_path, mlxport):
    folder = write_llama(tmp_path / "single", shards=1)
    assert mlxport("convert", folder, tmp_path / "out", *PLAIN).code == 0
    assert (tmp_path / "out/model.safetensors").read_bytes() == (converted / "model.safetensors").read_bytes()


def test_mlx_lm_loads_and_generates(converted):
    from mlx_lm import generate, load

    model, tokenizer = load(str(converted))
    assert model.args.rope_theta == 50000.0
    assert isinstance(generate(model, tokenizer, prompt="def f():", max_tokens=3), str)


def test_mlx_lm_generates_from_its_command_line(source, tmp_path, mlxport):
    out = tmp_path / "out"
    assert mlxport("convert", source, out, *SHARDED, "-q", "4").code == 0
    command = ["mlx_lm", "generate", "--model", str(out), "--prompt", "def", "--max-tokens", "2"]
    result = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, env=environment())
    assert result.returncode == 0, result.stderr
    assert "Generation: 2 tokens" in result.stdout


def test_a_quantized_model_is_not_quantized_again(source, tmp_path, mlxport):
    assert mlxport("convert", source, tmp_path / "q4", *PLAIN, "-q", "4").code == 0
    result = mlxport("convert", tmp_path / "q4", tmp_path / "out", *PLAIN, "-q", "8")
    assert result.code in (1, 2) and "quantized" in result.err and "hint: " in result.err
    assert not (tmp_path / "out").exists()


# --- verified, or said not to be ------------------------------------------------------------------------------------


def test_verified_by_default_and_recorded_without_the_clock(source, tmp_path, mlxport):
    results = []
    for name in ("a", "b"):
        report = json.loads(mlxport("convert", source, tmp_path / name, "--json").out)
        assert report["verified"] and report["parity"]["passed"] and not report["not_verified"]
        record = json.loads((tmp_path / name / "mlxport.json").read_text())
        assert record["verified"] and record["parity"]["comparisons"] and record["tokenizer"]
        results.append(hash_tree(tmp_path / name))
    assert results[0] == results[1]


def test_a_changed_weight_is_found_later(source, converted, tmp_path, mlxport):
    assert mlxport("verify", converted, "--against", source).code == 0
    broken = Path(shutil.copytree(converted, tmp_path / "broken"))
    header, data = read_raw(broken / "model.safetensors")
    begin, end = header["model.layers.1.mlp.down_proj.weight"]["data_offsets"]
    content = bytearray((broken / "model.safetensors").read_bytes())
    offset = len(content) - len(data)
    content[offset + begin : offset + end] = content[offset + begin : offset + end][::-1]
    (broken / "model.safetensors").write_bytes(content)
    result = mlxport("verify", broken, "--against", source)
    assert result.code == 3 and "model.layers.1.mlp.down_proj" in result.err
    assert len([line for line in result.err.splitlines() if line.startswith("error: ")]) == 1
    as_json = mlxport("verify", broken, "--against", source, "--json")
    assert as_json.code == 3 and json.loads(as_json.out)["passed"] is False


def swap_ids(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["e"] = vocabulary["e"], vocabulary["a"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def edit(name: str, **changes: object):
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def scale_a_little(folder: Path) -> None:
    import mlx.core as mx

    path = folder / "model.safetensors"
    arrays = dict(mx.load(str(path)))
    mx.eval(arrays)
    arrays["model.layers.1.mlp.down_proj.scales"] *= 1.03
    mx.save_safetensors(str(path), arrays, metadata={"format": "mlx"})


CHANGES = {
    "two ids swapped": (swap_ids, "tokenizer"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").write_text("{"), "tokenizer"),
    "another end of text": (edit("special_tokens_map.json", eos_token="<s>"), "special tokens"),
    "another template": (edit("tokenizer_config.json", chat_template="{{ messages }}"), "chat template"),
    "another id": (edit("config.json", eos_token_id=17), "eos_token_id 17"),
    "scales off by 3%": (scale_a_little, "changed since it was written"),
}


@pytest.fixture(scope="module")
def verified(_llama, tmp_path_factory):
    """A conversion to 4 bits that passes; not to be written to."""
    from mlxport import convert, verify

    out = tmp_path_factory.mktemp("verified") / "out"
    convert(_llama, out, verify="none", quantize=4)
    assert verify(out, _llama).passed
    return out


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_not_the_model_is_verified_too(source, verified, tmp_path, mlxport, name):
    change, named = CHANGES[name]
    out = Path(shutil.copytree(verified, tmp_path / "out"))
    change(out)
    result = mlxport("verify", out, "--against", source)
    assert result.code == 3 and named in result.err, result
    assert named in json.loads(mlxport("verify", out, "--against", source, "--json").out)["problems"][0]


def test_a_conversion_that_fails_parity_gets_no_final_name(source, tmp_path, mlxport):
    """The weights of the reference change between reading and verifying: a fault as a broken disk would make it."""
    out = tmp_path / "out"
    process = start("convert", source, out)
    shard = source / "model-00002-of-00003.safetensors"
    stop_after(process, tmp_path / "out.partial")
    header, data = read_raw(shard)
    content = bytearray(shard.read_bytes())
    content[-len(data) // 2 :] = content[-len(data) // 2 :][::-1]
    shard.write_bytes(content)
    process.send_signal(signal.SIGCONT)
    result = finish(process)
    assert result.code == 1 and "was written to" in result.err, result
    assert result.err.count("error: ") == 1 and "hint: " in result.err and "Traceback" not in result.err
    assert not out.exists()


WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; from mlxport.cli.app import main; main(sys.argv[1:])"


def test_without_torch_it_says_that_nothing_was_verified(source, converted, tmp_path):
    result = finish(start("convert", source, tmp_path / "out", code=WITHOUT_TORCH))
    assert result.code == 0, result
    assert "not verified" in result.out and "mlxport[torch]" in result.out
    assert "mlxport verify" in result.out
    record = json.loads((tmp_path / "out/mlxport.json").read_text())
    assert record["verified"] is False and "torch" in record["not_verified"]
    assert (tmp_path / "out/model.safetensors").read_bytes() == (converted / "model.safetensors").read_bytes()


def test_without_torch_what_needs_it_is_refused(source, tmp_path):
    result = finish(start("convert", source, tmp_path / "out", "--verify", "full", code=WITHOUT_TORCH))
    assert result.code == 2 and "torch" in result.err and "hint: " in result.err
    assert leftovers(tmp_path) == [] and not (tmp_path / "out").exists()


def test_modules_that_run_after_the_model_are_carried(source, tmp_path, mlxport):
    modules = {
        "modules.json": b'[{"idx": 1, "name": "1", "path": "1_Pooling", "type": "models.Pooling"}]',
        "config_sentence_transformers.json": b"{}",
        "sentence_bert_config.json": b'{"max_seq_length": 8}',
        "1_Pooling/config.json": b'{"pooling_mode_mean_tokens": true}',
        "2_Dense/config.json": b"{}",
        "2_Dense/model.safetensors": (source / "model-00001-of-00003.safetensors").read_bytes(),
    }
    strays = {"onnx/model.json": b"{}", "1_Pooling/run.py": b"", "original/params.json": b"{}"}
    for name, content in (modules | strays).items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(content)
    out = tmp_path / "out"
    for again in ((), ("--overwrite",)):
        assert mlxport("convert", source, out, *PLAIN, *again).code == 0
        assert {name: (out / name).read_bytes() for name in modules} == modules
        assert not any((out / name).exists() for name in strays)
