"""Under a limit: what is written is within it, fills it, and is what the recipe beside it gives again."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm.utils import compute_bits_per_weight, load_model
from sensitive_models import KINDS, save

from checkpoints import hash_tree
from mlxport import ConvertReport, convert, plan_for
from mlxport.allocate import Target, make_target
from mlxport.allocate.choose import Chosen, find_allocation
from mlxport.errors import QuantizationError
from mlxport.fit import Machine
from mlxport.layouts.mlx_lm.opening import open_model
from mlxport.progress import make_progress
from mlxport.quality import compare
from mlxport.source import open_checkpoint

ROOT = Path(__file__).parents[2]


def file_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def find(source: Path, target: Target | None, dtype: str = "auto") -> Chosen:
    assert target is not None
    with make_progress(0, "", quiet=True) as progress:
        model = open_model(open_checkpoint(source), dtype=dtype)
        return find_allocation(model, target, max_shard_size="5GB", shard_by="size", progress=progress)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("llama", tmp_path_factory.mktemp("allocation") / "tiny")


@pytest.mark.parametrize("kind", KINDS)
def test_bits_per_weight_as_mlx_lm_reports_them(kind: str, tmp_path: Path):
    source, out = save(kind, tmp_path / "source"), tmp_path / "out"
    # of "odd sizes", a quarter stays in 16 bits
    wanted = 7.5 if kind == "odd sizes" else 4.7
    report = convert(source, out, target_bpw=wanted, verify="none")
    reported = compute_bits_per_weight(load_model(out)[0])
    assert 0.98 * wanted < reported <= wanted
    allocation = report.allocation
    assert allocation is not None and allocation.exact
    assert allocation.limit_bytes >= allocation.used_bytes > 0.98 * allocation.limit_bytes
    assert {c.path: c.spec for c in allocation.choices if c.spec} == dict(report.plan.quantized)
    experts = [choice for choice in allocation.choices if "switch_mlp" in choice.path]
    assert bool(experts) == (kind in ("experts", "latent cache"))


@pytest.mark.parametrize("shards", ["5GB", "60KB"])
@pytest.mark.parametrize("size", [50_000, 77_777, "0.1MB"])
def test_file_sizes_count_every_byte(tiny, tmp_path, shards, size):
    limit = int(float(str(size).removesuffix("MB")) * 1e6) if isinstance(size, str) else size
    report = convert(tiny, tmp_path / "out", target_size=size, max_shard_size=shards, verify="none")
    assert 0.99 * limit < file_bytes(tmp_path / "out") <= limit
    assert report.allocation is not None and report.allocation.used_bytes == file_bytes(tmp_path / "out")


def test_tied_embeddings_count_once(tmp_path):
    source = save("tied", tmp_path / "source")
    report = convert(source, tmp_path / "out", target_bpw=5.0, dry_run=True)
    assert report.allocation is not None
    paths = [choice.path for choice in report.allocation.choices]
    assert "lm_head" not in paths and paths.count("model.embed_tokens") == 1
    assert not (tmp_path / "out").exists()


def test_the_recipe_gives_the_same_tensors(tiny, tmp_path):
    convert(tiny, tmp_path / "first", target_bpw=4.2, verify="none")
    recipe = tmp_path / "first/recipe.toml"
    convert(tiny, tmp_path / "again", recipe=recipe, quantizer="search", verify="none")
    for name in ("model.safetensors", "config.json", "model.safetensors.index.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert "--quantizer search" in recipe.read_text()
    record = json.loads((tmp_path / "first/mlxport.json").read_text())
    assert record["options"]["quantize"]["quantizer"] == "search"
    assert record["allocation"]["modules"]["lm_head"]["bits"] is not None


def test_the_same_command_gives_the_same_bytes(tiny, tmp_path, mlxport):
    command = ("convert", tiny, tmp_path / "out", "--target-bpw", "4.5", "--verify", "none", "--max-shard-size", "20KB")
    assert mlxport(*command).code == 0
    whole = hash_tree(tmp_path / "out")
    assert mlxport(*command, "--overwrite").code == 0
    assert hash_tree(tmp_path / "out") == whole


def test_the_quantizer_can_be_rtn(tiny, tmp_path):
    convert(tiny, tmp_path / "out", target_bpw=4.5, quantizer="rtn", verify="none")
    stored, plain = mx.load(str(tmp_path / "out/model.safetensors")), mx.load(str(tiny / "model.safetensors"))
    spec = json.loads((tmp_path / "out/config.json").read_text())["quantization"]["lm_head"]
    wanted = mx.quantize(plain["lm_head.weight"], group_size=spec["group_size"], bits=spec["bits"])
    assert mx.array_equal(stored["lm_head.weight"], wanted[0])


@pytest.fixture(scope="module")
def limited(tmp_path_factory) -> tuple[Path, ConvertReport]:
    """The trained example at the size of 3 bits in groups of 64, verified."""
    source, folder = ROOT / "examples/tiny-llama", tmp_path_factory.mktemp("limited") / "out"
    bits = convert(source, folder, quantize=3, dry_run=True).plan.bits_per_weight
    return folder, convert(source, folder, target_bpw=bits)


def test_verified_like_every_conversion(limited):
    _, report = limited
    assert report.parity is not None and report.parity.passed
    against = next(row for row in report.parity.comparisons if "original" in row.name)
    assert report.allocation is not None
    # one module's damage at a time, added up, on other tokens: of the order of what all of them do
    assert 0.3 < against.kl_mean / report.allocation.damage < 3


def test_less_damage_than_one_setting_for_all(limited, tmp_path):
    """At the same size, on text that bits were not chosen with."""
    from mlxport.model.tokens import text_ids

    source = ROOT / "examples/tiny-llama"
    convert(source, tmp_path / "plain", dtype="float32", verify="none")
    text = (ROOT / "examples/heldout.txt").read_text(encoding="utf-8")
    ids = mx.array(text_ids(source, text)[:1024]).reshape(4, 256)

    def logs(folder: Path) -> mx.array:
        model = load_model(folder)[0]
        model.set_dtype(mx.float32)
        logits = model(ids)
        return logits - mx.logsumexp(logits, axis=-1, keepdims=True)

    original, (folder, many) = logs(tmp_path / "plain"), limited
    one = convert(source, tmp_path / "one", quantize=3, quantizer="search", verify="none")
    assert many.plan.nbytes <= one.plan.nbytes
    damage = [(mx.exp(original) * (original - logs(out))).sum(-1).mean().item() for out in (folder, tmp_path / "one")]
    assert damage[0] < 0.75 * damage[1]


# --- machines --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "experts", "latent cache", "state space"])
def test_what_is_made_for_a_machine_fits_it(kind, tmp_path, monkeypatch):
    source, out = save(kind, tmp_path / "source"), tmp_path / "out"
    rows = {row.quantize: row for row in plan_for(source, device="M2 8GB", context=200).rows}
    # as much memory as 4 bits take, and a little more
    machine = Machine("small", 1, rows["4"].memory_bytes + 1000, None)
    monkeypatch.setattr("mlxport.fit.named_machine", lambda *_: machine)
    monkeypatch.setattr("mlxport.fit.planning.named_machine", lambda *_: machine)
    report = convert(source, out, fit="small 1GB", context=200, verify="none")
    assert report.allocation is not None
    assert report.allocation.used_bytes > 0.99 * report.allocation.limit_bytes
    planned = next(row for row in plan_for(out, device="small 1GB", context=200).rows if row.quantize is None)
    assert planned.fits and planned.memory_bytes == report.allocation.used_bytes <= machine.gpu_bytes
    assert planned.disk_bytes == report.allocation.memory["weight_bytes"]


def test_a_model_that_fits_stays_as_it_is(tiny, tmp_path, mlxport):
    result = mlxport("convert", tiny, tmp_path / "out", "--fit", "M2 8GB", "--verify", "none")
    assert result.code == 0 and "small enough as it is" in result.out
    assert not (tmp_path / "out/recipe.toml").exists()
    assert "quantization" not in json.loads((tmp_path / "out/config.json").read_text())


def test_float32_is_halved_for_a_machine_only(tmp_path):
    source = save("llama", tmp_path / "source", mx.float32)
    assert find(source, make_target(fit="M2 8GB")).dtype == "bfloat16"
    assert find(source, make_target(target_bpw=40.0)).dtype == "auto"


# --- what cannot be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "code", "named"),
    [
        (("--fit", "M2 8GB", "-q", "4"), 2, ("--fit", "--quantize", "contradicts")),
        (("--fit", "M2 8GB", "--q-bits", "4"), 2, ("--q-bits",)),
        (("--target-bpw", "4", "--recipe", "mixed_4_6"), 2, ("--recipe",)),
        (("--target-bpw", "4", "--target-size", "1MB"), 2, ("--target-size", "--target-bpw", "two limits")),
        (("--fit", "M2 8GB", "--target-size", "1MB"), 2, ("--fit", "--target-size")),
        (("--context", "100"), 2, ("--context 100", "without --fit")),
        (("--target-bpw", "4", "--context", "100"), 2, ("--context", "without --fit")),
        (("--fit", "M2 8GB", "--context", "1"), 2, ("--context 1",)),
        (("--fit", "M2 8GB", "--context", "100000"), 2, ("100000", "at most 16384")),
        (("--fit", ""), 2, ("--fit ''", "M1")),
        (("--fit", "Q7 8GB"), 2, ("--fit 'Q7 8GB'", "M1", "M4 Max")),
        (("--fit", "M2 7GB"), 2, ("--fit 'M2 7GB'", "8 GB")),
        (("--target-size", "huge"), 2, ("--target-size 'huge'",)),
        (("--target-size", "0"), 2, ("--target-size '0'",)),
        (("--target-bpw", "-1"), 2, ("--target-bpw",)),
        (("--target-bpw", "nan"), 2, ("--target-bpw",)),
        (("--target-bpw", "1.5"), 2, ("the least possible is", "--target-bpw 1.5")),
        (("--target-size", "10KB"), 2, ("the least possible is", "--target-size 10 kB")),
        (("--target-bpw", "4", "--quantizer", "best"), 2, ("unknown quantizer 'best'",)),
        (("--target-bpw", "4", "--layout", "generated"), 2, ("generated", "mlx-lm")),
    ],
)  # fmt: skip
def test_refused(options, code, named, tmp_path, mlxport):
    source = save("llama", tmp_path / "source", max_position_embeddings=16384)
    result = mlxport("convert", source, tmp_path / "out", *options)
    lines = result.err.splitlines()
    assert result.code == code, result
    assert [sum(line.startswith(f"{kind}: ") for line in lines) for kind in ("error", "hint")] == [1, 1], result.err
    assert "Traceback" not in result.err and not (tmp_path / "out").exists()
    assert all(name in result.err for name in named), result.err


def test_the_least_possible_can_be_had(tiny, tmp_path):
    with pytest.raises(QuantizationError) as error:
        convert(tiny, tmp_path / "out", target_size=10_000, verify="none")
    least = int(error.value.message.split("(")[1].split()[0].replace(",", ""))
    convert(tiny, tmp_path / "out", target_size=least, verify="none")
    assert file_bytes(tmp_path / "out") == least
    with pytest.raises(QuantizationError, match="least possible"):
        convert(tiny, tmp_path / "none", target_size=least - 1, verify="none")


def test_a_machine_too_small_says_so(tiny, tmp_path, monkeypatch):
    machine = Machine("small", 1, 100_000, None)
    monkeypatch.setattr("mlxport.fit.named_machine", lambda *_: machine)
    with pytest.raises(QuantizationError, match="least possible") as error:
        convert(tiny, tmp_path / "out", fit="small 1GB", verify="none")
    assert "--context" in str(error.value.hint)


def test_a_quantized_source_is_refused(tiny, tmp_path):
    convert(tiny, tmp_path / "quantized", quantize=8, verify="none")
    with pytest.raises(QuantizationError, match="already quantized"):
        convert(tmp_path / "quantized", tmp_path / "out", target_bpw=4.5, verify="none")


@pytest.mark.parametrize("arguments", [["--fit"], ["--fit", "--verify", "none"]])
def test_alone_it_is_for_this_machine(arguments, tiny, tmp_path, mlxport):
    from mlxport.errors import UsageError
    from mlxport.fit import this_machine

    result = mlxport("convert", tiny, tmp_path / "out", *arguments)
    try:
        this_machine()
    except UsageError:
        assert result.code == 2 and "no Mac with Apple silicon" in result.err and '--fit "M2 8GB"' in result.err
    else:
        assert result.code == 0


def test_what_calibration_leaves_is_recorded_not_what_was_predicted_before_it(tmp_path):
    """The record's damage is that of the output, as ``compare`` measures it on other text."""
    source = ROOT / "examples/tiny-llama"
    report = convert(source, tmp_path / "out", target_bpw=3.5, calibrate="default", verify="none")
    searched = convert(source, tmp_path / "other", target_bpw=3.5, dry_run=True).allocation
    assert report.allocation is not None and searched is not None
    recorded = json.loads((tmp_path / "out/mlxport.json").read_text())["allocation"]
    assert recorded["predicted_damage"] == pytest.approx(report.allocation.damage, rel=1e-3)
    assert "calibrated, the output measures" in recorded["predictor"]
    assert report.allocation.damage < 0.85 * searched.damage
    total = sum(module["predicted_damage"] for module in recorded["modules"].values())
    assert total == pytest.approx(report.allocation.damage, rel=1e-2)
    measured = compare(source, tmp_path / "out", tokens=1024).kl_mean
    assert 0.7 < measured / report.allocation.damage < 1.4
