from __future__ import annotations

import os
import shutil
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest
from quality_models import CONFIGS, edit_config, stored, torch_logits

import mlxport
from checkpoints import save, weights, write_side_files
from command import environment
from mlxport.errors import NumericsError, SourceError, TokenizerError, UnsupportedError, UsageError
from mlxport.model.texts import PROBE_TEXT
from mlxport.output.record import read_record
from mlxport.quality import Tally, compare, heldout_text, open_original, open_output, place, read_text, token_windows
from mlxport.quality.baseline import rounded_to_nearest, rounds_to_nearest
from mlxport.source import open_checkpoint

TOKENS = 200


def log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@pytest.mark.parametrize(("name", "bits"), [("tiny-llama", 4), ("tiny-llama", 2), ("llama_tied", 4)])
def test_figures_are_those_of_torch_in_float64(sources, outputs, name, bits):
    source, output = sources(name), outputs(name, quantize=bits)
    quality = compare(source, output, tokens=TOKENS, window=64)
    pieces, _ = token_windows(source, heldout_text(), vocabulary=2048, tokens=TOKENS, window=64)
    kl, same, nll = [], [], {"original": [], "output": []}
    weights = stored(output)
    if name == "llama_tied":
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    for ids in pieces:
        p, q = log_softmax(torch_logits(source, ids)), log_softmax(torch_logits(source, ids, weights))
        p, q, rows = p[:-1], q[:-1], np.arange(len(ids) - 1)
        kl += (np.exp(p) * (p - q)).sum(-1).tolist()
        same += (p.argmax(-1) == q.argmax(-1)).tolist()
        nll["original"] += (-p[rows, ids[1:]]).tolist()
        nll["output"] += (-q[rows, ids[1:]]).tolist()
    assert (quality.tokens, quality.windows) == (len(kl), len(pieces))
    assert quality.kl_mean == pytest.approx(np.mean(kl), rel=1e-3)
    assert quality.kl_p99 == pytest.approx(np.quantile(kl, 0.99), rel=1e-3)
    assert quality.kl_median == pytest.approx(np.median(kl), rel=1e-3)
    assert quality.kl_max == pytest.approx(max(kl), rel=1e-3)
    assert quality.kl_error == pytest.approx(np.std(kl, ddof=1) / len(kl) ** 0.5, rel=1e-3)
    assert quality.top1 == pytest.approx(np.mean(same), abs=1.5 / len(kl))  # a tie may fall either way
    assert quality.perplexity_original == pytest.approx(np.exp(np.mean(nll["original"])), rel=1e-4)
    assert quality.perplexity == pytest.approx(np.exp(np.mean(nll["output"])), rel=1e-4)


def test_fewer_bits_lose_more(sources, outputs):
    found = [compare(sources("tiny-llama"), outputs("tiny-llama", quantize=bits), tokens=400) for bits in (8, 4, 2)]
    assert 0 < found[0].kl_mean < found[1].kl_mean / 20 < found[2].kl_mean / 200
    assert found[0].top1 > found[1].top1 > found[2].top1
    assert found[0].perplexity_original == found[2].perplexity_original < found[2].perplexity


@pytest.mark.parametrize("name", CONFIGS)
def test_an_unchanged_model_loses_nothing(sources, outputs, name):
    quality = compare(sources(name), outputs(name, dtype="float32"), tokens=TOKENS)
    assert (quality.kl_max, quality.top1) == (0, 1)
    assert quality.perplexity == quality.perplexity_original


@pytest.mark.parametrize("quantize", [None, 4, "mxfp4", "nvfp4", "mxfp8"])
@pytest.mark.parametrize("name", ["llama_tied", "gpt2", "qwen3_moe", "deepseek_v3"])
def test_from_disk_the_figures_are_the_same(sources, outputs, name, quantize):
    source, output = sources(name), outputs(name, quantize=quantize, dtype="bfloat16")
    here = compare(source, output, tokens=TOKENS, window=100)
    there = compare(source, output, tokens=TOKENS, window=100, memory_limit=0)
    assert (here.original_placed, here.output_placed) == ("memory", "memory")
    assert (there.original_placed, there.output_placed) == ("disk", "disk")
    assert there.kl_mean == pytest.approx(here.kl_mean, rel=2e-3)
    assert there.kl_p99 == pytest.approx(here.kl_p99, rel=1e-2)
    assert there.perplexity == pytest.approx(here.perplexity, rel=1e-4)
    assert 0 < here.kl_mean


def test_the_output_is_kept_in_memory_first(sources, outputs):
    original, output = open_original(sources("llama")), open_output(outputs("llama"))
    place(original, output, output.nbytes)
    assert (original.placed, output.placed) == ("disk", "memory")
    again = open_output(outputs("llama", quantize=8))
    quality = compare(original, again, tokens=64)
    assert quality.original_placed == "disk" and quality.kl_mean > 0
    packed = open_output(outputs("llama", quantize=8))
    place(original, packed, packed.nbytes)  # not enough for what its weights stand for
    assert packed.placed == "memory" and packed.nbytes < packed.unpacked_nbytes
    assert again.nbytes == again.unpacked_nbytes or mx.default_device() != mx.cpu
    assert compare(original, packed, tokens=64).kl_mean == pytest.approx(quality.kl_mean, rel=1e-3)


def test_ids_stand_for_a_text_where_there_is_no_tokenizer(sources, outputs, tmp_path):
    source = shutil.copytree(sources("llama"), tmp_path / "source", ignore=shutil.ignore_patterns("token*", "special*"))
    with pytest.raises(TokenizerError, match="no tokenizer"):
        compare(source, outputs("llama", quantize=4))
    ids = [np.arange(2, 40), np.arange(300, 250, -1)]
    quality = compare(source, outputs("llama", quantize=4), ids=ids)
    assert quality.tokens == 37 + 49
    with pytest.raises(UsageError, match="two tokens"):
        compare(source, outputs("llama", quantize=4), ids=[np.array([1])])
    with pytest.raises(UsageError, match="320 is outside of the vocabulary of 320"):
        compare(source, outputs("llama", quantize=4), ids=[np.array([1, 320])])


def test_windows_begin_as_texts_do_and_cover_the_text(sources):
    folder = sources("tiny-llama")
    pieces, notes = token_windows(folder, heldout_text(), vocabulary=2048, tokens=1000, window=100)
    whole, _ = token_windows(folder, heldout_text(), vocabulary=2048, tokens=1000, window=10_000)
    begin = [int(whole[0][0])] if whole[0][0] == pieces[1][0] else []
    assert max(map(len, pieces)) == 100 and notes == ()
    joined = np.concatenate([piece[len(begin) :] for piece in pieces])
    assert np.array_equal(joined[:990], whole[0][len(begin) :][:990])
    _, notes = token_windows(folder, heldout_text(), vocabulary=1500, tokens=1000)
    assert "outside the vocabulary" in notes[0]


def test_the_text_is_not_the_one_of_verification():
    assert 10_000 < len(heldout_text().encode()) < 15_000
    sentences = {line.strip() for line in heldout_text().replace(". ", ".\n").splitlines() if len(line.strip()) > 30}
    assert not {sentence for sentence in sentences if sentence in PROBE_TEXT}


@pytest.mark.parametrize(
    ("content", "named"),
    [(b"", "is empty"), (b" \n\t", "is empty"), (b"\xff\xfe\x00a", "byte 0 is not UTF-8"), (b"a\0b", "zero bytes")],
)
def test_what_is_no_text_is_refused(tmp_path, content, named):
    path = tmp_path / "text"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=named):
        read_text(path)
    with pytest.raises(UsageError, match="cannot read"):
        read_text(tmp_path / "absent")


def test_a_text_that_says_too_little_is_refused(sources, outputs):
    with pytest.raises(UsageError, match="the text makes 5 tokens"):
        compare(sources("llama"), outputs("llama"), "short")


def test_another_model_is_no_original(sources, outputs, tmp_path):
    with pytest.raises(UsageError, match="was not made from"):
        compare(sources("qwen2"), outputs("llama"))
    with pytest.raises(UsageError, match=r"shape \[320, 64\] there"):
        compare(sources("llama"), outputs("tiny-llama", quantize=4))
    with pytest.raises(SourceError, match="not an MLX model"):
        compare(sources("llama"), sources("llama"))
    odd = shutil.copytree(outputs("llama"), tmp_path / "odd")
    edit_config(odd, model_file="model.py")
    with pytest.raises(UnsupportedError, match="code of its own"):
        compare(sources("llama"), odd)


@pytest.mark.parametrize("limit", [None, 0])
def test_nan_is_refused_with_the_module_that_makes_it(tmp_path, outputs, sources, limit):
    source = tmp_path / "source"
    write_side_files(source)
    broken = weights()
    broken["model.layers.1.self_attn.o_proj.weight"][3, 5] = np.nan
    save(source / "model.safetensors", broken, "F32")
    output = tmp_path / "out"
    mlxport.convert(source, output, verify="none")
    with pytest.raises(NumericsError, match=r"of the original are NaN.*model\.layers\.1\.self_attn\.o_proj"):
        compare(source, output, memory_limit=limit)


def test_logits_are_summed_in_blocks_as_at_once(monkeypatch):
    random = np.random.default_rng(0)
    logits = [random.normal(size=(50, 97)).astype(np.float32) for _ in range(2)]
    targets = random.integers(0, 97, 50)
    results = []
    for block in (1, 97 * 7, 1 << 22):
        monkeypatch.setattr("mlxport.quality.divergence._BLOCK", block)
        tally = Tally()
        tally.add(*logits, targets)
        results.append(tally.result())
    assert results[0].tokens == 50
    for result in results[1:]:
        assert result.kl_mean == pytest.approx(results[0].kl_mean, rel=1e-12)
        assert result.perplexity == pytest.approx(results[0].perplexity, rel=1e-12)


def test_torch_is_not_needed(sources, outputs):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from mlxport.quality import compare\n"
        f"print(compare({str(sources('llama'))!r}, {str(outputs('llama', quantize=4))!r}, tokens=64).tokens)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) == 63  # of 64 tokens, the first is not predicted


@pytest.mark.parametrize("quantize", [None, 4, "mxfp8"])
def test_from_disk_no_more_than_blocks_is_held(tmp_path, monkeypatch, quantize):
    cores = os.cpu_count() or 1  # each of them works on a block of its own
    monkeypatch.setattr("mlxport.model.streaming.BLOCK_BYTES", (1 << 20) // cores)
    monkeypatch.setattr("mlxport.model.streaming.SMALL_BYTES", 1 << 16)
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "head_dim": 64, "vocab_size": 8192}
    write_side_files(tmp_path / "source", 8, tie_word_embeddings=True, **sizes)
    random = np.random.default_rng(0)
    shapes = {"q": (256, 256), "k": (128, 256), "v": (128, 256), "o": (256, 256)}
    arrays = {"model.embed_tokens.weight": (8192, 256), "model.norm.weight": (256,)}
    for layer in range(8):
        prefix = f"model.layers.{layer}."
        arrays |= {f"{prefix}self_attn.{name}_proj.weight": shape for name, shape in shapes.items()}
        arrays |= {f"{prefix}{name}_layernorm.weight": (256,) for name in ("input", "post_attention")}
        arrays |= {f"{prefix}mlp.{name}_proj.weight": (1024, 256) for name in ("gate", "up")}
        arrays |= {f"{prefix}mlp.down_proj.weight": (256, 1024)}
    save(
        tmp_path / "source" / "model.safetensors",
        {name: 0.1 * random.standard_normal(shape, np.float32) for name, shape in arrays.items()},
        "BF16",
    )
    mlxport.convert(tmp_path / "source", tmp_path / "out", quantize=quantize, verify="none")
    parameters = sum(int(np.prod(shape)) for shape in arrays.values())
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    compare(tmp_path / "source", tmp_path / "out", tokens=64, memory_limit=0)
    assert mx.get_peak_memory() - before < parameters / 2  # in memory both together take 8 bytes a weight


@pytest.mark.parametrize("limit", [None, 0])
def test_the_baseline_is_the_original_rounded_to_nearest_at_the_outputs_bits(sources, outputs, limit):
    """What searching and calibrating are beside: as ``convert --quantizer rtn`` with the same recipe writes it."""
    source, searched = sources("llama"), outputs("llama", quantize=3, quantizer="search")
    ids = [np.arange(2, 80)]
    baseline = rounded_to_nearest(open_checkpoint(source), open_output(searched))
    original = open_original(source)
    place(original, baseline, limit)
    found = compare(original, baseline, ids=ids)
    wanted = compare(source, outputs("llama", quantize=3, quantizer="rtn"), ids=ids)
    assert found.kl_mean == pytest.approx(wanted.kl_mean, rel=1e-3) and found.kl_mean > 0.01
    assert found.top1 == wanted.top1
    assert rounded_to_nearest(open_checkpoint(source), open_output(outputs("llama"))) is None


def test_what_is_rounded_to_nearest_already_needs_no_baseline(outputs):
    assert rounds_to_nearest(read_record(outputs("llama", quantize=3, quantizer="rtn")))
    assert not rounds_to_nearest(read_record(outputs("llama", quantize=3, quantizer="search")))
    assert not rounds_to_nearest({}) and not rounds_to_nearest({"options": {"quantize": 5}})
