"""Plans for models that are run for their task: what they become, what is counted, and that the bytes are the real."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import pytest

import mlxport
from mlxport import plan_for
from mlxport.errors import UsageError
from mlxport.fit import TaskPlan
from mlxport.fit.liveness import CPU
from mlxport.fit.task_footprint import need_of_call
from mlxport.run.media.made_voice import made_voice
from whisper_models import make_whisper, save_whisper

EXAMPLES = Path(__file__).parents[2] / "examples"
DEVICE = "M2 8GB"
# Folder -> layout, task, what is counted.
PLANS = {
    "tiny-texts/names": ("generated", "token-classification", ("a text of 32 tokens",)),
    "tiny-digits": ("generated", "image-classification", ("a picture of 16 x 16 pixels",)),
    "tiny-keypad": (
        "generated",
        "automatic-speech-recognition",
        ("30 s of sound: 240,000 samples, 2,999 moments",),
    ),
    "tiny-shapes": (
        "generated-parts",
        "zero-shot-image-classification",
        ("a text of 8 tokens", "a picture of 32 x 32 pixels: 16 patches"),
    ),
}


def planned(folder: Path, **options: object) -> TaskPlan:
    found = plan_for(folder, device=DEVICE, **options)  # type: ignore[arg-type]
    assert isinstance(found, TaskPlan)
    return found


@pytest.mark.parametrize("name", PLANS)
def test_what_a_model_becomes_and_what_is_counted(name, tmp_path):
    layout, task, counted = PLANS[name]
    plan = planned(EXAMPLES / name)
    assert (plan.layout, plan.task, plan.counted, plan.recommended) == (layout, task, counted, "float32")
    assert plan.command.startswith("mlxport run DST ")
    (plain, *_) = plan.rows
    made = mlxport.convert(EXAMPLES / name, tmp_path / "out", dry_run=True)
    assert plain.disk_bytes == made.plan.nbytes and plan.parameters == made.plan.parameters
    assert plain.workspace_bytes > 0 and plain.memory_bytes + plain.spare_bytes == plan.machine.gpu_bytes
    json.dumps(plan.to_json())


def test_the_bytes_of_bits_are_those_that_convert_writes(tmp_path):
    row = next(row for row in planned(EXAMPLES / "tiny-keypad").rows if row.quantize == "8")
    made = mlxport.convert(EXAMPLES / "tiny-keypad", tmp_path / "out", quantize="8", dry_run=True)
    assert row.problem == "" and row.disk_bytes == made.plan.nbytes


def test_a_whisper_is_planned_with_30_seconds(tmp_path):
    pytest.importorskip("mlx_whisper")
    save_whisper(tmp_path / "whisper", make_whisper())
    plan = planned(tmp_path / "whisper")
    assert (plan.layout, plan.task) == ("mlx-whisper", "automatic-speech-recognition")
    assert plan.counted == ("30 s of sound: 1,500 moments", "a transcript of 448 tokens")
    made = mlxport.convert(tmp_path / "whisper", tmp_path / "out", dry_run=True)
    assert plan.rows[0].disk_bytes == made.plan.nbytes and plan.rows[0].workspace_bytes > 10**6


def test_a_longer_text_takes_more_and_one_beyond_the_model_is_refused():
    short, long = (planned(EXAMPLES / "tiny-texts/names", context=tokens) for tokens in (8, 32))
    assert short.rows[0].workspace_bytes < long.rows[0].workspace_bytes
    with pytest.raises(UsageError, match="at most 32 tokens"):
        plan_for(EXAMPLES / "tiny-texts/names", device=DEVICE, context=33)
    with pytest.raises(UsageError, match="no key-value cache"):
        plan_for(EXAMPLES / "tiny-texts/names", device=DEVICE, kv_bits=8)


def test_what_a_call_holds_is_what_mlx_measures(tmp_path):
    """On the CPU, 30 seconds of sound: within a fifth of the peak that MLX reports."""
    mlxport.convert(EXAMPLES / "tiny-keypad", tmp_path / "out", verify="none")
    with mx.stream(mx.cpu):
        model = mlxport.load(tmp_path / "out")
        sound = mx.array(made_voice(30.0, 8000, 0)[None])
        mx.eval(sound, model.parameters())
        need = need_of_call(model, {"input_values": sound}, backend=CPU)
        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        mx.eval(model(input_values=sound))
        measured = mx.get_peak_memory() - before
    assert need is not None and need.outputs == ((1, 2999, 17),)
    assert measured == pytest.approx(need.nbytes - sound.nbytes, rel=0.2)


def test_the_plan_is_shown(mlxport):
    result = mlxport("plan", EXAMPLES / "tiny-digits", "--device", DEVICE)
    assert result.code == 0, result.err
    for line in ("runs     image-classification: mlxport run DST picture.jpg", "recommended: float32"):
        assert line in result.out
    assert "num_batches_tracked" not in result.out
    data = json.loads(mlxport("plan", EXAMPLES / "tiny-digits", "--device", DEVICE, "--json").out)
    assert data["layout"] == "generated" and data["rows"][0]["fits"]
