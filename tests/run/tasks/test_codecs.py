"""Codecs of sound: codes that are those of transformers and waves that are near, of any length, rate and channels."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import soundfile
import torch
import transformers

import mlxport
from codec_models import CODECS
from mlxport.run.media.made_voice import made_voice

KINDS = sorted(CODECS)
RATE = 1200
COUNTS = {"encodec": 3, "stereo": 2, "dac": 3, "mimi": 3}


class Codecs:
    """Each converted when it is first asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.reports: dict[str, Any] = {}

    def source(self, kind: str) -> Path:
        folder = self.root / f"{kind}-original"
        if not folder.exists():
            folder.mkdir()
            CODECS[kind](folder)
        return folder

    def __call__(self, kind: str) -> Path:
        folder = self.root / kind
        if not folder.exists():
            self.reports[kind] = mlxport.convert(self.source(kind), folder, quiet=True)
        return folder


@pytest.fixture(scope="session")
def codecs(tmp_path_factory: pytest.TempPathFactory) -> Codecs:
    return Codecs(tmp_path_factory.mktemp("codecs"))


def sound(samples: int, channels: int, seed: int = 0) -> np.ndarray:
    """[samples, channels]."""
    voices = [made_voice(samples / RATE + 1e-6, RATE, seed + channel)[:samples] for channel in range(channels)]
    return np.stack(voices, axis=1)


@functools.cache
def original(source: Path) -> tuple[Any, Any]:
    extractor = transformers.AutoFeatureExtractor.from_pretrained(source)
    return extractor, transformers.AutoModel.from_pretrained(source).eval()


def theirs(source: Path, samples: np.ndarray, **chosen: Any) -> Any:
    """What transformers gives of samples [samples, channels]."""
    extractor, model = original(source)
    given = samples.T if samples.shape[1] > 1 else samples[:, 0]
    made = extractor(given, sampling_rate=RATE, return_tensors="pt")
    if "bandwidth" in chosen:
        chosen["padding_mask"] = made["padding_mask"]
    with torch.no_grad():
        return model(made["input_values"], **chosen)


def chosen_of(kind: str, count: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """How a number of codebooks is said to ours and to transformers' class."""
    if kind in ("encodec", "stereo"):
        return {"bandwidth": round(count * 0.4, 1)}, {"bandwidth": round(count * 0.4, 1)}
    name = "n_quantizers" if kind == "dac" else "num_quantizers"
    return {"num_quantizers": count}, {name: count}


@pytest.mark.parametrize("kind", KINDS)
def test_each_part_and_the_task_are_verified(codecs, kind):
    folder = codecs(kind)
    report = codecs.reports[kind].parity
    rows = [row.inputs for row in report.comparisons]
    assert {"encode, example", "encode, other sizes", "decode, example", "decode, other sizes", "all parts"} <= set(
        rows
    )
    assert all(row.passed and row.relative < 3e-5 for row in report.comparisons)  # by the processor: DAC 1.1e-5
    assert report.task.task == "audio-to-audio" and not report.task.missing and not report.task.wrong
    assert report.task.inputs == 3 and report.task.error < 1e-4
    assert {"encode.py", "decode.py"} <= {file.name for file in folder.iterdir()}


@pytest.mark.parametrize("kind", KINDS)
def test_codes_are_the_same_at_every_length(codecs, kind):
    """Also of sounds that are too short to be reflected (Mimi's are of two frames at least), and of any remainder."""
    channels = 2 if kind == "stereo" else 1
    pipeline = mlxport.pipeline(codecs(kind))
    for samples in (25, 431) if kind == "mimi" else (1, 5, 24, 431):
        for count in (1, COUNTS[kind]):
            given = sound(samples, channels, samples)
            ours, other = chosen_of(kind, count)
            wanted = theirs(codecs.source(kind), given, **other)
            found = pipeline(given, **ours)
            assert np.array_equal(found["codes"], wanted.audio_codes.numpy()), (samples, count)
            wave = wanted.audio_values.numpy().reshape(channels, -1)[:, :samples]
            assert found["audio"].shape == wave.shape and found["sampling_rate"] == RATE
            assert np.abs(found["audio"] - wave).max() < 1e-4 * np.abs(wave).max()


@pytest.mark.parametrize("kind", KINDS)
def test_codes_differ_and_decode_alone(codecs, command, kind, tmp_path):
    """The codes of a file are those of the sound, and make the same sound again."""
    channels = 2 if kind == "stereo" else 1
    soundfile.write(tmp_path / "in.wav", sound(500, channels), RATE, subtype="FLOAT")
    for given, more in (("in.wav", ["--codes", tmp_path / "codes.npy"]), ("codes.npy", [])):
        code, out, err = command(codecs(kind), tmp_path / given, "--output", tmp_path / f"{given}.wav", *more)
        assert code == 0 and not out and f"{given}.wav" in err
    codes = np.load(tmp_path / "codes.npy")
    assert codes.dtype == np.int64 and codes.ndim == (4 if kind in ("encodec", "stereo") else 3)
    assert len(np.unique(codes)) > 1
    first, again = (soundfile.read(tmp_path / f"{name}.wav")[0] for name in ("in.wav", "codes.npy"))
    assert len(first) == 500 or kind == "dac"
    assert np.array_equal(again[: len(first)], first) and len(again) >= len(first)


def test_parts_are_called_from_python(codecs):
    model = mlxport.load(codecs("stereo"))
    wave = torch.randn(3, 2, 200)
    with torch.no_grad():
        _, encodec = original(codecs.source("stereo"))
        codes, scales, _ = encodec.encode(wave, bandwidth=0.8, return_dict=False)
        wanted = encodec.decode(codes, scales, return_dict=False)[0]
    found = model.encode(input_values=mx.array(wave.numpy()))
    assert np.array_equal(np.array(found["audio_codes"]), codes[0].numpy())
    assert np.allclose(np.array(found["audio_scales"]), scales[0].numpy(), atol=1e-6)
    assert np.allclose(np.array(model.decode(**found)), wanted.numpy(), atol=1e-5)


def test_any_rate_and_any_number_of_channels(codecs, tmp_path):
    """A file of another rate is resampled, channels become what the model has."""
    wide = np.stack([made_voice(0.5, 8000, seed) for seed in range(3)], axis=1)
    soundfile.write(tmp_path / "wide.flac", wide, 8000)
    for kind, channels in (("encodec", 1), ("stereo", 2)):
        found = mlxport.pipeline(codecs(kind))(tmp_path / "wide.flac")
        assert found["audio"].shape == (channels, 600)
    one = mlxport.pipeline(codecs("encodec"))(tmp_path / "wide.flac")
    again = mlxport.pipeline(codecs("encodec"))(one, output=str(tmp_path / "again.ogg"))
    assert np.array_equal(again["audio"][:, :600], one["audio"])
    assert soundfile.info(tmp_path / "again.ogg").samplerate == RATE


def test_json_and_standard_output(codecs, command, tmp_path):
    soundfile.write(tmp_path / "in.wav", sound(240, 1), RATE)
    code, out, _ = command(codecs("dac"), tmp_path / "in.wav", "--json")
    about = json.loads(out)
    assert code == 0 and about["sampling_rate"] == RATE and about["seconds"] == pytest.approx(0.2, abs=0.01)
    assert np.shape(about["codes"]) == (1, 3, 20)


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        ("encodec", ["nothing.wav"], "no such file"),
        ("encodec", ["empty.wav"], "0 seconds"),
        ("encodec", ["text.wav"], "not a sound"),
        ("encodec", ["in.wav", "--bandwidth", "6"], "one of 0.4, 0.8, 1.2"),
        ("encodec", ["in.wav", "--bandwidth", "0"], "more than 0"),
        ("encodec", ["in.wav", "--bandwidth", "0.8", "--num-quantizers", "2"], "give one of the two"),
        ("encodec", ["in.wav", "--num-quantizers", "5"], "1 to 3"),
        ("dac", ["in.wav", "--bandwidth", "1"], "--num-quantizers 1 to 3"),
        ("encodec", ["in.wav", "in.wav", "--output", "out.wav"], "one input at a time"),
        ("encodec", ["in.wav", "--output", "out.mp4"], ".wav"),
        ("encodec", ["in.wav", "--output", "no/out.wav"], "no folder"),
        ("encodec", ["in.wav", "--codes", "out.txt"], ".npy"),
        ("encodec", ["three.npy", "--output", "out.wav"], "[chunks, 1, codebooks, frames]"),
        ("dac", ["many.npy", "--output", "out.wav"], "of 9 codebooks"),
        ("dac", ["large.npy", "--output", "out.wav"], "0 to 15"),
        ("dac", ["floats.npy", "--output", "out.wav"], "whole numbers"),
        ("dac", ["text.npy", "--output", "out.wav"], "no array"),
        ("dac", ["three.npy", "--output", "out.wav", "--num-quantizers", "2"], "leave them out"),
        ("stereo", ["chunk.npy", "--output", "out.wav"], "loudness"),
        ("encodec", ["in.wav", "--top-k", "3"], "not an option"),
    ],
)
def test_bad_input_is_one_clear_error(codecs, command, monkeypatch, tmp_path, kind, given, said):
    monkeypatch.chdir(tmp_path)
    soundfile.write("in.wav", sound(100, 1), RATE)
    soundfile.write("empty.wav", np.zeros((0, 1)), RATE)
    for name in ("text.wav", "text.npy"):
        Path(name).write_text("no sound")
    for name, shape, fill in (
        ("three", (1, 3, 5), 1),
        ("many", (1, 9, 5), 1),
        ("large", (1, 3, 5), 16),
        ("chunk", (1, 1, 2, 5), 1),
    ):
        np.save(name, np.full(shape, fill))
    np.save("floats", np.zeros((1, 3, 5)))
    before = sorted(tmp_path.iterdir())
    code, out, err = command(codecs(kind), *given)
    assert code in (1, 2) and not out and said in err and "hint: " in err
    assert sorted(tmp_path.iterdir()) == before
