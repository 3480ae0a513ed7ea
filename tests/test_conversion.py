"""Conversions from end to end: killed, resumed, replaced, recorded, and loaded by mlx-lm itself."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from checkpoints import INDEX, hash_tree, read_raw, save, weights, write_llama, write_torch_llama
from command import environment, finish, start, stop_after

PLAIN = ("--verify", "none")
SHARDED = (*PLAIN, "--max-shard-size", "50KB")


class Forks:
    """See forked_runs.py."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def run(self, *arguments: str | Path, watch: Path, kill_at: int | None = None, delay: float | None = None) -> dict:
        request = {"arguments": [*map(str, arguments)], "watch": str(watch), "kill_at": kill_at, "delay": delay}
        assert self.process.stdin and self.process.stdout
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return dict(json.loads(self.process.stdout.readline()))


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    command = [sys.executable, str(Path(__file__).with_name("forked_runs.py"))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=environment(), **pipes) as process:  # type: ignore[call-overload]
        yield Forks(process)
        process.stdin.close()
        process.wait(timeout=60)


@pytest.fixture
def undisturbed(source, tmp_path, mlxport) -> dict[str, str]:
    """What the conversion of ``source`` to small shards must end with."""
    assert mlxport("convert", source, tmp_path / "undisturbed", *SHARDED).code == 0
    return hash_tree(tmp_path / "undisturbed")


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("out") and path.name != "out")


# --- killed and resumed ---------------------------------------------------------------------------------------------


def test_kill_before_every_step_and_go_on(forks, source, tmp_path):
    """Whatever file operation a kill comes before, the same command ends with the same bytes."""
    out = tmp_path / "out"
    command = ("convert", source, out, *PLAIN, "--max-shard-size", "150KB")
    events = forks.run(*command, watch=out)["events"]
    whole = hash_tree(out)
    assert len(list(out.glob("*.safetensors"))) == 2
    assert sum(event.startswith("os.rename") for event in events) > 5
    for moment, event in enumerate(events):
        shutil.rmtree(out)
        assert forks.run(*command, watch=out, kill_at=moment)["code"] == -signal.SIGKILL, event
        published = out.exists()  # then a kill comes too late to change anything but what is dropped at the end
        again = forks.run(*command, watch=out)
        assert again["code"] == (2 if published else 0), (event, again)
        assert hash_tree(out) == whole, event
        assert leftovers(tmp_path) == [], event


def test_kill_before_every_step_of_replacing(forks, source, converted, undisturbed, tmp_path):
    """With --overwrite there is, at any moment, the old model or the new one, and the same command ends well."""
    out = tmp_path / "out"
    old = hash_tree(converted)
    assert old != undisturbed
    command = ("convert", source, out, *SHARDED, "--overwrite")
    shutil.copytree(converted, out)
    events = forks.run(*command, watch=out)["events"]
    first = next(n for n, event in enumerate(events) if event == "os.rename out")
    assert first > len(events) / 3
    moments = [*range(0, first, 12), *range(first - 2, len(events))]
    for moment in moments:
        shutil.rmtree(out)
        shutil.copytree(converted, out)
        assert forks.run(*command, watch=out, kill_at=moment)["code"] == -signal.SIGKILL
        kept = out if out.exists() else out.with_name("out.partial") / ".mlxport-replaced"
        if moment <= first + 1:
            assert hash_tree(kept) == old, events[moment]
        assert forks.run(*command, watch=out)["code"] == 0, events[moment]
        assert hash_tree(out) == undisturbed, events[moment]
        assert leftovers(tmp_path) == [], events[moment]


def test_a_replaced_model_comes_back_when_the_next_run_does_not_replace(forks, source, converted, tmp_path):
    """Killed between the two renames: the old model has its name again as soon as anything looks."""
    out = Path(shutil.copytree(converted, tmp_path / "out"))
    command = ("convert", source, out, *SHARDED)
    events = forks.run(*command, "--overwrite", watch=out)["events"]
    between = next(n for n, event in enumerate(events) if event == "os.rename out") + 1
    shutil.rmtree(out)
    shutil.copytree(converted, out)
    forks.run(*command, "--overwrite", watch=out, kill_at=between)
    assert not out.exists()
    result = forks.run(*command, watch=out)
    assert result["code"] == 2 and "already exists" in result["stderr"]
    assert hash_tree(out) == hash_tree(converted)


def test_kill_at_random_moments(forks, many_shards, tmp_path):
    """Kills by the clock, inside reads, computing and writes; several in a row before the run that ends."""
    out = tmp_path / "out"
    command = ("convert", many_shards, out, *SHARDED, "-q", "4")
    begun = time.monotonic()
    assert forks.run(*command, watch=out)["code"] == 0
    took = time.monotonic() - begun
    whole = hash_tree(out)
    clock = random.Random(0)
    for _ in range(6):
        shutil.rmtree(out)
        for _ in range(2):
            forks.run(*command, watch=out, delay=clock.uniform(0.1, 1.0) * took)
            if out.exists():
                break
        if not out.exists():
            assert forks.run(*command, watch=out)["code"] == 0
        assert forks.run("convert", many_shards, out, *PLAIN, watch=out)["code"] == 2  # drops what is left, if any
        assert hash_tree(out) == whole


@pytest.fixture
def interrupted(forks, many_shards, tmp_path) -> Path:
    """``out.partial`` of a run that was killed after some shards."""
    out = tmp_path / "out"
    command = ("convert", many_shards, out, *SHARDED)
    events = forks.run(*command, watch=out)["events"]
    shutil.rmtree(out)
    middle = [n for n, event in enumerate(events) if event.endswith(".safetensors.tmp")][9]
    assert forks.run(*command, watch=out, kill_at=middle)["code"] == -signal.SIGKILL
    return tmp_path / "out.partial"


def identity(folder: Path) -> dict[str, tuple[int, int]]:
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.glob("*.safetensors")}


def test_finished_shards_are_not_written_again(interrupted, many_shards, mlxport):
    finished = identity(interrupted)
    assert len(finished) >= 3
    out = interrupted.with_name("out")
    report = json.loads(mlxport("convert", many_shards, out, *SHARDED, "--json").out)
    assert set(report["resumed"]) >= set(finished) - {max(finished)}
    now = identity(out)
    assert {name: now[name] for name in report["resumed"]} == {name: finished[name] for name in report["resumed"]}


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_finished_shard_is_written_again(interrupted, many_shards, mlxport, tmp_path, damage):
    victim = sorted(interrupted.glob("*.safetensors"))[1]
    content = bytearray(victim.read_bytes())
    if damage == "remove":
        victim.unlink()
    elif damage == "truncate":
        os.truncate(victim, len(content) // 2)
    else:
        content[-5] ^= 1
        victim.write_bytes(content)
    report = json.loads(mlxport("convert", many_shards, tmp_path / "out", *SHARDED, "--json").out)
    assert report["resumed"] and victim.name not in report["resumed"]
    assert mlxport("convert", many_shards, tmp_path / "whole", *SHARDED).code == 0
    assert hash_tree(tmp_path / "out") == hash_tree(tmp_path / "whole")


@pytest.mark.parametrize("change", ["options", "source", "same size, newer"])
def test_another_conversion_begins_again(interrupted, many_shards, mlxport, tmp_path, change):
    options, source = [*SHARDED], many_shards
    if change == "options":
        options += ["--dtype", "float32"]
    else:
        source = write_llama(tmp_path / "other", layers=12, shards=2, seed=1)
        if change == "same size, newer":  # the same folder name, other content
            source = Path(shutil.copytree(many_shards, tmp_path / "again" / many_shards.name))
    report = json.loads(mlxport("convert", source, tmp_path / "out", *options, "--json").out)
    assert report["resumed"] == []
    assert mlxport("convert", source, tmp_path / "whole", *options).code == 0
    assert hash_tree(tmp_path / "out") == hash_tree(tmp_path / "whole")


@pytest.mark.parametrize("state", [b"", b"nonsense", b"[]", b'{"fingerprint": 1}', b"\xff"])
def test_a_damaged_state_begins_again(interrupted, many_shards, mlxport, state):
    (interrupted / ".mlxport-state.json").write_bytes(state)
    result = mlxport("convert", many_shards, interrupted.with_name("out"), *SHARDED, "--json")
    assert json.loads(result.out)["resumed"] == []


def test_a_state_with_damaged_entries_begins_again(interrupted, many_shards, mlxport):
    path = interrupted / ".mlxport-state.json"
    state = json.loads(path.read_text())
    state["shards"] = dict.fromkeys(state["shards"], 3)
    path.write_text(json.dumps(state))
    result = mlxport("convert", many_shards, interrupted.with_name("out"), *SHARDED, "--json")
    assert json.loads(result.out)["resumed"] == []


# --- not ours, in use, stopped --------------------------------------------------------------------------------------


def test_a_foreign_partial_folder_is_refused_and_kept(source, tmp_path, mlxport):
    foreign = tmp_path / "out.partial"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    result = mlxport("convert", source, tmp_path / "out", *PLAIN)
    assert result.code == 2 and "out.partial" in result.err and "not made by mlxport" in result.err
    assert (foreign / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_partial_name_that_is_taken_is_refused_and_kept(source, tmp_path, mlxport, kind):
    taken = tmp_path / "out.partial"
    if kind == "file":
        taken.write_text("precious")
    else:
        (tmp_path / "elsewhere").mkdir()
        taken.symlink_to("elsewhere")
    result = mlxport("convert", source, tmp_path / "out", *PLAIN)
    assert result.code == 2 and "out.partial" in result.err and "bug" not in result.err
    assert taken.is_symlink() or taken.read_text() == "precious"


def test_a_neighbour_called_replaced_is_kept(source, converted, tmp_path, mlxport):
    """Nothing beside DST and DST.partial is ours to touch."""
    neighbour = tmp_path / "out.replaced"
    neighbour.mkdir()
    (neighbour / "thesis.txt").write_text("years of work")
    shutil.copytree(converted, tmp_path / "out")
    assert mlxport("convert", source, tmp_path / "out", *PLAIN, "--overwrite").code == 0
    assert (neighbour / "thesis.txt").read_text() == "years of work"


def test_a_second_run_at_once_is_refused(many_shards, tmp_path, mlxport):
    out = tmp_path / "out"
    process = start("convert", many_shards, out, *SHARDED)
    stop_after(process, tmp_path / "out.partial")
    second = mlxport("convert", many_shards, out, *SHARDED)
    assert second.code == 2 and "another run is writing" in second.err
    process.send_signal(signal.SIGCONT)
    assert finish(process).code == 0
    assert (out / "mlxport.json").is_file()


def test_what_appears_meanwhile_is_not_replaced(many_shards, converted, tmp_path, mlxport):
    """Somebody else puts a model under the final name while we convert: theirs stays, ours waits."""
    out = tmp_path / "out"
    process = start("convert", many_shards, out, *SHARDED)
    stop_after(process, tmp_path / "out.partial")
    shutil.copytree(converted, out)
    process.send_signal(signal.SIGCONT)
    result = finish(process)
    assert result.code == 2 and "already exists" in result.err
    assert hash_tree(out) == hash_tree(converted)
    report = json.loads(mlxport("convert", many_shards, out, *SHARDED, "--overwrite", "--json").out)
    assert len(report["resumed"]) == len(report["plan"]["shards"])


def test_the_lock_ends_with_the_process(source, tmp_path, mlxport):
    (tmp_path / "out.partial").mkdir()
    descriptor = os.open(tmp_path / "out.partial", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert mlxport("convert", source, tmp_path / "out", *PLAIN).code == 2
    os.close(descriptor)
    assert mlxport("convert", source, tmp_path / "out", *PLAIN).code == 0


def test_ctrl_c_leaves_a_state_that_goes_on(many_shards, tmp_path, mlxport):
    out = tmp_path / "out"
    process = start("convert", many_shards, out, *SHARDED)
    stop_after(process, tmp_path / "out.partial", 3)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    result = finish(process)
    assert result.code == 130, result
    assert "error: stopped" in result.err and "run the same command again" in result.err
    assert "Traceback" not in result.err and not out.exists()
    finished = identity(tmp_path / "out.partial")
    report = json.loads(mlxport("convert", many_shards, out, *SHARDED, "--json").out)
    assert len(report["resumed"]) >= 2  # the third was there, but perhaps not recorded yet
    assert {name: identity(out)[name] for name in report["resumed"]}.items() <= finished.items()


# --- replaced, planned ----------------------------------------------------------------------------------------------


def test_the_old_model_is_there_until_the_end(many_shards, converted, tmp_path):
    out = Path(shutil.copytree(converted, tmp_path / "out"))
    process = start("convert", many_shards, out, *SHARDED, "--overwrite")
    stop_after(process, tmp_path / "out.partial", 3)
    assert hash_tree(out) == hash_tree(converted)
    process.send_signal(signal.SIGCONT)
    assert finish(process).code == 0
    assert hash_tree(out).keys() != hash_tree(converted).keys()
    assert leftovers(tmp_path) == []


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
    assert result.code == 3, result
    assert result.err.count("error: ") == 1 and "hint: " in result.err and "Traceback" not in result.err
    assert not out.exists()


WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; from mlxport.cli import main; main(sys.argv[1:])"


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
