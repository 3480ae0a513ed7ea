"""A plan from config and headers alone, for folders and for the hub, and what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from checkpoints import read_raw, write_llama
from command import environment, finish, start
from mlxport import plan_for
from mlxport.errors import UsageError
from mlxport.fit.footprint import Footprint
from mlxport.fit.planning import longest_context
from mlxport.fit.quant_settings import settings
from refusals import Case, check_error

sys.path.append(str(Path(__file__).parents[1] / "source"))
from hub_server import REPO, HubServer  # noqa: E402

DEVICE = "M2 8GB"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("plan") / "llama", shards=1)


@pytest.fixture
def without_weights(llama: Path, tmp_path: Path) -> Path:
    """The headers, and holes where the weights would be."""
    folder = tmp_path / "holes"
    folder.mkdir()
    for file in llama.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    size, (_, data) = (folder / "model.safetensors").stat().st_size, read_raw(folder / "model.safetensors")
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(size - len(data))
        file.truncate(size)
    return folder


def test_a_plan(llama, without_weights):
    report = plan_for(llama, device=DEVICE)
    assert {row.name for row in report.rows} == {setting.name("bfloat16") for setting in settings()}
    assert report.rows[0].name == report.recommended == "bfloat16"
    assert (report.context, report.context_limit, report.dtype) == (256, 256, "")
    for row in report.rows:
        assert row.fits and row.longest_context == 256
        assert row.memory_bytes + row.spare_bytes == report.machine.gpu_bytes
        assert row.cache_bytes == 2 * 2 * 16 * 256 * 2 * 2  # layers, heads, size, tokens, keys and values, bytes
    elsewhere = plan_for(without_weights, device=DEVICE)
    assert elsewhere.rows == report.rows


def test_the_rate_is_that_of_the_bytes_that_are_read_and_of_the_operations(llama):
    """Everything but the table of embeddings, of which one row is looked up.

    Of operations 21 a layer: heads of 16 have no kernel of their own for attention.
    """
    report = plan_for(llama, device=DEVICE)
    row = report.rows[0]
    read = (row.disk_bytes - 319 * 64 * 2 + row.cache_bytes) / 100e9
    operations = 2 * 21 + 3
    slow, fast = (factor * read + operations * each for factor, each in ((1.32, 4.4e-6), (1.05, 1.6e-6)))
    assert row.tokens_per_second == pytest.approx((1 / slow, 1 / fast), rel=1e-3)


def test_a_quantized_source_stays_as_it_is(llama, tmp_path):
    from mlxport import convert

    convert(llama, tmp_path / "out", quantize=4, verify="none")
    report = plan_for(tmp_path / "out", device=DEVICE)
    usable = [row for row in report.rows if not row.problem]
    assert [row.quantize for row in usable] == [None] and report.recommended == usable[0].name
    assert usable[0].disk_bytes == sum(a.nbytes for a in mx.load(str(tmp_path / "out" / "model.safetensors")).values())
    assert usable[0].bits_per_weight < 5
    assert all("already quantized" in row.problem for row in report.rows[1:])


def test_float32_is_planned_as_bfloat16(tmp_path, mlxport):
    folder = write_llama(tmp_path / "wide", shards=1, dtype="F32")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "dtype": "float32"}))
    report = plan_for(folder, device=DEVICE)
    assert report.dtype == "bfloat16" and any("--dtype bfloat16" in note for note in report.notes)
    assert report.rows[0].bits_per_weight == 16
    assert plan_for(folder, device=DEVICE, dtype="float32").rows[0].bits_per_weight == 32
    assert "--dtype bfloat16" in mlxport("plan", folder, "--device", DEVICE).out


BIG = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 8, "num_attention_heads": 64,
       "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "max_position_embeddings": 131072}  # fmt: skip


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Headers of 18 GB of weights, without the weights."""
    folder = write_llama(tmp_path_factory.mktemp("plan") / "big", shards=1)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **BIG}))
    hidden, middle, rows, keys = 8192, 28672, 128256, 1024
    shapes = {
        "model.embed_tokens.weight": (rows, hidden),
        "lm_head.weight": (rows, hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in range(8):
        prefix = f"model.layers.{layer}."
        shapes |= {prefix + f"{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
        sizes = {"q": hidden, "k": keys, "v": keys, "o": hidden}
        shapes |= {prefix + f"self_attn.{name}_proj.weight": (size, hidden) for name, size in sizes.items()}
        shapes |= {prefix + f"mlp.{name}_proj.weight": (middle, hidden) for name in ("gate", "up")}
        shapes[prefix + "mlp.down_proj.weight"] = (hidden, middle)
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    return folder


def test_where_something_fits(big):
    report = plan_for(big, device="M1 16GB", context=8192)
    rows = {row.name: row for row in report.rows}
    assert rows["bfloat16"].spare_bytes < 0 < rows["4 bits"].spare_bytes
    assert report.recommended and rows[report.recommended].fits and not report.larger_machines
    for row in report.rows:
        assert (row.longest_context >= 8192) == row.fits
    few = [rows[f"{bits} bits"].longest_context for bits in (8, 6, 5, 4, 3, 2)]
    assert few == sorted(few)


def test_where_nothing_fits(big, mlxport):
    report = plan_for(big, device="M2 8GB", context=131072)
    assert report.recommended == "" and not any(row.fits for row in report.rows)
    assert report.shorter_setting == "2 bits" and 0 < report.shorter_context < 131072
    assert plan_for(big, device="M2 8GB", context=report.shorter_context * 9 // 10).recommended
    assert report.larger_machines and all("8GB" != name.split()[-1] for name in report.larger_machines)
    setting = next(row for row in report.rows if row.name == report.larger_setting)
    again = plan_for(big, device=report.larger_machines[0], context=131072)
    assert next(row for row in again.rows if row.name == setting.name).fits
    shown = mlxport("plan", big, "--device", "M2 8GB", "--context", "131072")
    assert shown.code == 0
    assert f"what would: 2 bits with up to {report.shorter_context:,} tokens of context" in shown.out
    assert f"what would: {report.larger_setting} on {', '.join(report.larger_machines)}" in shown.out


def test_older_systems_leave_less(big):
    shares = [plan_for(big, device="M1 16GB", macos=macos).rows[0].spare_bytes for macos in (15, 26, None)]
    assert shares[0] < shares[1] == shares[2]


def test_the_longest_context_is_where_the_needs_meet_the_budget():
    from models import build

    footprint = Footprint(build("llama", mx.bfloat16), plan_backend())
    for budget in (2_000_000, 30_000_000, 200_000_000):
        found = longest_context(footprint, budget, 1 << 17)
        assert footprint.at(found).peak <= budget * 1.02 and footprint.at(found + 2048).peak > budget
    assert longest_context(footprint, 10, 1 << 17) == 0
    assert longest_context(footprint, 10**12, 5000) == 5000


def plan_backend():
    from mlxport.fit.liveness import METAL

    return METAL


def test_the_command(llama, mlxport):
    shown = mlxport("plan", llama, "--device", "m2-8gb")
    assert shown.code == 0 and shown.err == ""
    for part in ("M2 8GB: 5.76 GB for the GPU, 100 GB/s", "256 tokens of context", "recommended: bfloat16", "tokens/s"):
        assert part in shown.out
    rows = [line.split()[0] for line in shown.out.splitlines() if line.startswith("  ") and line.strip()]
    assert rows[2] == "bfloat16" and {"mxfp4", "nvfp4", "mxfp8", "mixed_4_6"} <= set(rows)
    assert "mlxport convert" in shown.out.splitlines()[-1]
    report = json.loads(mlxport("plan", llama, "--device", DEVICE, "--json").out)
    assert report["recommended"] == "bfloat16" and len(report["rows"]) == len(settings())
    assert "calibrating (-q 4 --calibrate default): about " in shown.out
    assert report["calibration"]["seconds"] > 0 and report["calibration"]["peak_bytes"] > 1 << 20
    assert report["rows"] == json.loads(json.dumps(plan_for(llama, device=DEVICE).to_json()))["rows"]


WRONG = [
    Case("device", None, ("--device 'M9 8GB'", "M1, M1 Pro", "did you mean"), ("--device", "M9 8GB"), 2),
    Case("memory", None, ("M2 comes with 8 GB, 16 GB, 24 GB, not with 12 GB",), ("--device", "M2 12GB"), 2),
    Case("context", None, ("at most 256 tokens", "--context 256 or less"), ("--device", DEVICE, "--context", "257"), 2),
    Case("no context", None, ("--context 0", "at least 2"), ("--device", DEVICE, "--context", "0"), 2),
    Case("bits", None, ("--kv-bits 7", "2, 3, 4, 5, 6, 8"), ("--device", DEVICE, "--kv-bits", "7"), 2),
    Case("group", None, ("--kv-group-size 48",), ("--device", DEVICE, "--kv-group-size", "48"), 2),
    Case("no model", lambda folder: (folder / "config.json").unlink(), ("has no config.json",), ("--device", DEVICE)),
    Case(
        "architecture",
        lambda folder: (folder / "config.json").write_text('{"model_type": "zzz"}'),
        ("mlx-lm has no architecture 'zzz'",),
        ("--device", DEVICE),
    ),
    Case(
        "code",
        lambda folder: (folder / "config.json").write_text('{"model_type": "zzz", "auto_map": {"AutoModel": "a.B"}}'),
        ("names code of its own", "--trust-remote-code"),
        ("--device", DEVICE),
    ),
    Case(
        "weights",
        lambda folder: (folder / "model-00002-of-00003.safetensors").unlink(),
        ("model-00002-of-00003.safetensors", "missing"),
        ("--device", DEVICE),
    ),
]


@pytest.mark.parametrize("case", WRONG, ids=lambda case: case.name)
def test_bad_input(source, mlxport, case):
    if case.break_it is not None:
        case.break_it(source)
    check_error(mlxport("plan", source, *case.options), case)


def test_no_device_where_there_is_no_mac(llama):
    if sys.platform == "darwin":
        pytest.skip("this is a Mac")
    with pytest.raises(UsageError, match="no Mac with Apple silicon"):
        plan_for(llama)


def test_of_a_repository_only_headers_are_fetched(llama, tmp_path):
    with HubServer(llama) as hub:
        env = environment(HF_ENDPOINT=hub.endpoint, HF_HOME=str(tmp_path / "hub"), HF_HUB_OFFLINE="0")
        result = finish(start("plan", REPO, "--device", DEVICE, "--json", env=env))
        assert result.code == 0, result.err
        assert not list((tmp_path / "hub").rglob("*.safetensors"))
    assert json.loads(result.out)["rows"] == json.loads(json.dumps(plan_for(llama, device=DEVICE).to_json()))["rows"]


def test_of_very_many_tensors_the_shapes_are_enough(monkeypatch, tmp_path):
    """DeepSeek-V3's checkpoint, smaller: fp8 blocks, experts one by one."""
    sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
    import plan_tensors
    from mlxport.fit import planning

    sizes = dict(num_hidden_layers=3, num_nextn_predict_layers=0, first_k_dense_replace=1, hidden_size=256,
                 intermediate_size=256, vocab_size=320, n_routed_experts=8, num_experts_per_tok=2, n_group=2,
                 topk_group=1, moe_intermediate_size=128, num_attention_heads=4, num_key_value_heads=4,
                 kv_lora_rank=128, q_lora_rank=128)  # fmt: skip
    config = {**plan_tensors.CONFIG, **sizes}
    count, shards, nbytes = plan_tensors.write_hollow(tmp_path, config, shard_bytes=1 << 20)
    assert count > 150 and shards > 2 and nbytes < 10_000_000
    full = plan_for(tmp_path, device=DEVICE).to_json()
    monkeypatch.setattr(planning, "_MANY_TENSORS", 100)
    shapes = plan_for(tmp_path, device=DEVICE).to_json()
    for report in (full, shapes):
        assert report.pop("calibration")["peak_bytes"] > 0
    assert shapes == full and len([row for row in full["rows"] if not row["problem"]]) > 10
