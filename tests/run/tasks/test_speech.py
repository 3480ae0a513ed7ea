"""Recordings: Whisper by mlx-whisper, ports that hear and write; what is refused. Real speech where the files are."""

from __future__ import annotations

import json
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import soundfile
import torch
import transformers

import mlxport
from checkpoints import write_tokenizer
from external import external
from mlxport.errors import MlxportError, UsageError
from mlxport.run.tasks import whisper_speech
from mlxport.run.tasks.decoder_speech import _pieces
from mlxport.run.tasks.subtitles import srt, vtt
from mlxport.run.tasks.task_options import SpeechOptions
from mlxport.run.tasks.whisper_times import TimeRule
from whisper_models import make_whisper, save_whisper

SPOKEN = "And so my fellow Americans ask not what your country can do for you, ask what you can do for your country."
CHUNKS = [
    {"timestamp": [0.0, 7.74], "text": " Hello --> there"}, {"timestamp": [7.74, 7.74], "text": ""},
    {"timestamp": [8.0, 8.0], "text": " word"}, {"timestamp": [3661.5, 3662.0], "text": " end"},
]  # fmt: skip


def test_subtitles():
    assert list(srt(CHUNKS))[:4] == ["1", "00:00:00,000 --> 00:00:07,740", "Hello -> there", ""]
    assert list(srt(CHUNKS))[4:7] == ["2", "00:00:08,000 --> 00:00:08,020", "word"]  # what says nothing is left out
    assert list(vtt(CHUNKS))[-3:] == ["01:01:01.500 --> 01:01:02.000", "end", ""]
    assert next(vtt([])) == "WEBVTT" and not list(srt([]))


def test_a_long_recording_is_cut_where_it_is_quiet():
    loud = np.ones(2500, np.float32)
    loud[900:1000] = 0
    pieces = list(_pieces(loud, 1000, 1.0))
    assert len(pieces[0]) == 950 and sum(map(len, pieces)) == 2500 and max(map(len, pieces)) <= 1000
    assert [len(piece) for piece in _pieces(loud[:1000], 1000, 1.0)] == [1000]


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mlx_whisper")
    root = tmp_path_factory.mktemp("speech")
    mlxport.convert(save_whisper(root / "source", make_whisper()), root / "out", verify="none")
    return root / "out"


def test_generate_names_run_for_a_folder_that_mlx_whisper_wrote(english, tmp_path):
    for name in ("config.json", "weights.safetensors"):
        (tmp_path / name).write_bytes((english / name).read_bytes())
    with pytest.raises(MlxportError) as told:
        mlxport.generate(tmp_path, "hello")
    assert told.value.hint == f"its task is automatic-speech-recognition: mlxport run {tmp_path} talk.wav"


def test_what_whisper_refuses(english, tmp_path, command):
    pipeline = mlxport.pipeline(english)
    sound = np.zeros(1600, np.float32)
    for given, said in (
        ({"language": "klingon"}, r"--language 'klingon' is none that Whisper knows"),
        ({"language": "german"}, "hears English only"),
        ({"task_name": "translate"}, "hears English only, and writes that"),
        ({"chunk_length": 10.0}, "30 seconds at a time"),
        ({"format": "doc"}, "doc"),
    ):
        with pytest.raises(UsageError, match=said) as refused:
            pipeline(sound, **given)
    with pytest.raises(UsageError, match="holds no sound"):
        pipeline(sound[:0])
    with pytest.raises(UsageError) as refused:
        pipeline(sound, language="klingon")
    assert "en (english)" in refused.value.hint
    soundfile.write(tmp_path / "a.wav", sound, 16000)
    code, _, said = command(english, tmp_path / "a.wav", "--task", "translate")
    assert code == UsageError.exit_code and "hears English only" in said
    code, _, said = command(english, tmp_path / "a.wav", "--task", "sing")
    assert code == UsageError.exit_code and "--task 'sing' does not exist" in said


SILENT, END, BEGUN = 30, 20, 3  # of a small vocabulary: 20 words, the end, special tokens, and times


@pytest.mark.parametrize("latest", [None, 4])
@pytest.mark.parametrize(
    "written", [[], [33], [33, 5], [33, 5, 6], [33, 5, 6, 39], [33, 5, 39, 39], [33, 5, 39, 39, 7], [31, 4, 31]]
)
def test_times_are_those_that_transformers_lets_through(written, latest):
    config = transformers.GenerationConfig(no_timestamps_token_id=SILENT, eos_token_id=END)
    config.max_initial_timestamp_index = latest
    theirs = transformers.generation.logits_process.WhisperTimeStampLogitsProcessor(config, begin_index=BEGUN)
    tokens = np.array([[21, 22, 23, *written]])
    for seed in range(4):
        logits = np.random.default_rng(seed).standard_normal((1, 50)).astype(np.float32) * 3
        wanted = theirs(torch.from_numpy(tokens), torch.from_numpy(logits)).numpy()
        found = np.array(TimeRule(SILENT, END, BEGUN, latest).apply(mx.array(logits), mx.array(tokens)))
        np.testing.assert_array_equal(found, wanted)


def test_no_part_ends_before_it_begins(tmp_path, monkeypatch):
    """Of a random Whisper that writes many times: mlx-whisper alone goes back in them."""
    pytest.importorskip("mlx_whisper")
    model = make_whisper()
    with torch.no_grad():
        model.model.decoder.embed_tokens.weight[50363:] *= 1.5
    mlxport.convert(save_whisper(tmp_path / "source", model), tmp_path / "out", verify="none")
    recognizer = mlxport.pipeline(tmp_path / "out").recognizer
    sound = np.random.default_rng(0).standard_normal(16000 * 20).astype(np.float32) * 0.1

    def heard() -> list[tuple[float, float]]:
        settings = {"language": None, "task": "transcribe", "temperature": 0.0, "sample_len": 60}
        made = recognizer._transcribed(sound, False, without_timestamps=False, **settings)
        return [(part["start"], part["end"]) for part in made["segments"]]

    found = heard()
    assert len(found) > 4 and all(start < end for start, end in found)
    assert all(end <= start for (_, end), (start, _) in pairwise(found))
    monkeypatch.setattr(whisper_speech, "with_times_in_order", lambda model: nullcontext())
    assert any(end < start for start, end in heard())


def test_without_the_extra(english, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "mlx_whisper.transcribe", None)
    with pytest.raises(UsageError, match="transcribing with Whisper needs mlx_whisper") as refused:
        mlxport.pipeline(english)
    assert refused.value.hint == "pip install 'mlxport[whisper]'"


def test_a_port_that_hears_and_writes(tmp_path):
    config = transformers.MoonshineConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, encoder_num_hidden_layers=1, decoder_num_hidden_layers=1,
        encoder_num_attention_heads=2, decoder_num_attention_heads=2, encoder_num_key_value_heads=2,
        decoder_num_key_value_heads=2, decoder_start_token_id=1, bos_token_id=1, eos_token_id=2, pad_token_id=2,
        max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.MoonshineForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.generation_config.max_length = 12
    source = tmp_path / "source"
    model.save_pretrained(source)
    write_tokenizer(source, 300)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=False).save_pretrained(source)
    mlxport.convert(source, tmp_path / "out", verify="none")
    sound = np.random.default_rng(0).standard_normal(16000).astype(np.float32) * 0.1
    with torch.no_grad():
        tokens = model.generate(torch.from_numpy(sound)[None], max_new_tokens=11)[0, 1:].tolist()
    pipeline = mlxport.pipeline(tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    assert pipeline(sound)["text"] == tokenizer.decode(tokens, skip_special_tokens=True) != ""
    with pytest.raises(UsageError, match="--word-timestamps"):
        pipeline(sound, word_timestamps=True)
    assert SpeechOptions().format == "txt"


def test_real_speech(tmp_path, command):
    """As transformers writes it; mlx-whisper's own ``transcribe``, unmodified, ends a window with features of 0."""
    mlx_whisper = pytest.importorskip("mlx_whisper")
    source, sound = external("whisper-tiny.en"), external("audio", "jfk_16k.wav")
    out = tmp_path / "out"
    mlxport.convert(source, out, verify="none")
    code, text, _ = command(out, sound, "--quiet")
    assert (code, text.strip()) == (0, SPOKEN)
    samples = np.pad(soundfile.read(sound, dtype="float32")[0], (0, 19 * 16000))
    pipeline = mlxport.pipeline(out)  # leaves its float32 copy where mlx-whisper looks for a model
    pipeline.recognizer._transcribed(samples[:1600], False, without_timestamps=True, sample_len=1)
    made = mlx_whisper.transcribe(samples, path_or_hf_repo=str(out), without_timestamps=True, fp16=False)
    assert made["text"].strip() == SPOKEN
    words = pipeline(str(sound), word_timestamps=True)["chunks"]
    assert [word["text"] for word in words[:4]] == [" And", " so", " my", " fellow"]
    assert json.dumps(words) and 10 < words[-1]["timestamp"][1] < 11
