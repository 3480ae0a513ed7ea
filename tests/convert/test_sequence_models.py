"""Models of an encoder and a decoder write what transformers writes: one reading, and then steps on mlx-lm's caches."""

from __future__ import annotations

import json
import shutil

import mlx.core as mx
import pytest
import torch
import transformers
from mlx.utils import tree_flatten
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import trim_prompt_cache
from transformers import NllbTokenizer

import mlxport
from mlxport.errors import UnsupportedError, UsageError
from mlxport.graph.capture.examples import Example
from mlxport.graph.write.execute_source import execute
from mlxport.graph.write.port_weights import from_torch, port_weights
from mlxport.layouts.generated.generation_step import emit_step
from mlxport.parity.sequence_steps import check_steps
from mlxport.run.beam_search import search_beams
from mlxport.run.sequence_rules import SequenceRules
from sequence_models import CONFIGS, T5, make_sequence_model, randomised, save_sequence_model, written

SOURCES = [[5, 40, 31, 7, 300, 22, 90, 14, 15, 16, 200], [9, 8, 7, 3]]
TOKENS = 16
RULES = {"no_repeat_ngram_size": 1, "suppress_tokens": [3], "forced_eos_token_id": None}  # no token twice, and no end


@pytest.fixture(scope="module")
def emitted():
    """Original and port of a model, made once."""
    made = {}

    def get(name):
        if name not in made:
            model = make_sequence_model(name)
            port = emit_step(model, model_type=name)
            state = {
                **dict(model.named_parameters(remove_duplicate=False)),
                **dict(model.named_buffers(remove_duplicate=False)),
            }
            tensors = {**port.captured.state, **state}
            source = execute(port.source)
            ported = source.Model(source.ModelArgs())
            weights = port_weights(port.weights, port.folds, lambda key: from_torch(tensors[key].detach()))
            ported.load_weights(list(weights.items()))
            made[name] = model, ported.eval(), port
        return made[name]

    return get


def tokens(ported, source, start=2):
    cache = ported.make_cache()
    ported.encode(mx.array([source]), cache)
    processors = SequenceRules(RULES, (), TOKENS).processors()
    steps = generate_step(
        mx.array([start]), ported, max_tokens=TOKENS, prompt_cache=cache, logits_processors=processors
    )
    return [int(token) for token, _ in steps]


@pytest.mark.parametrize("name", CONFIGS)
def test_steps_on_caches_write_the_same_tokens(emitted, name):
    original, ported, _ = emitted(name)
    for source in SOURCES:
        wanted = written(original, source, TOKENS, **RULES)
        assert len(set(wanted)) == TOKENS
        assert tokens(ported, source) == wanted


@pytest.mark.parametrize("name", CONFIGS)
def test_a_text_in_one_call_and_in_pieces_has_the_original_logits(emitted, name):
    original, ported, _ = emitted(name)
    source, text = (
        torch.tensor([SOURCES[0], SOURCES[0][::-1]]),
        torch.tensor([[2, 5, 9, 11, 200, 7], [2, 6, 8, 8, 1, 4]]),
    )
    with torch.no_grad():
        wanted = from_torch(original(input_ids=source, decoder_input_ids=text).logits)
    bound = 1e-4 * float(mx.abs(wanted).max())
    assert float(mx.abs(ported(from_torch(text), input_ids=from_torch(source)) - wanted).max()) < bound
    cache = ported.make_cache()
    ported.encode(from_torch(source), cache)
    pieces = [ported(from_torch(text[:, start:stop]), cache) for start, stop in ((0, 2), (2, 3), (3, 6))]
    assert float(mx.abs(mx.concatenate(pieces, axis=1) - wanted).max()) < bound


def test_the_encoder_is_read_once_and_each_layer_keeps_two_arrays(emitted):
    _, ported, port = emitted("bart")
    cache = ported.make_cache()
    ported.encode(mx.array([SOURCES[0]]), cache)
    assert [[array.shape for array in layer[0].cache] for layer in cache] == [[(1, 4, 11, 8)] * 2] * 2
    call = port.source.rpartition("def __call__")[2].partition("def layers")[0]
    assert "k_proj" not in call and ".encode(input_ids, cache)" in call


def test_a_bias_of_distances_is_looked_up_once_for_all_layers(emitted):
    _, _, port = emitted("t5")
    assert port.source.count("relative_attention_bias(") == 2  # the encoder's and the decoder's


SEARCHES = {
    "plain": {},
    "longer": {"length_penalty": 2.0, "early_stopping": True, "num_beams": 3},
    "shorter": {"length_penalty": -1.0, "early_stopping": "never", "eos_token_id": [3, 20, 90]},
    "never": {"length_penalty": 0.6, "early_stopping": "never", "num_beams": 2, "eos_token_id": [3, 40, 41, 42]},
    "rules": {
        "no_repeat_ngram_size": 2, "repetition_penalty": 1.4, "forced_bos_token_id": 40, "forced_eos_token_id": 3,
        "bad_words_ids": [[50], [60, 61]], "suppress_tokens": [17, 18], "begin_suppress_tokens": [30], "min_length": 6,
        "renormalize_logits": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("name", ["bart", "t5", "marian"])
def test_beams_find_the_same_tokens(emitted, name, search):
    original, ported, _ = emitted(name)
    settings = {"num_beams": 4, "eos_token_id": [3], "forced_eos_token_id": None, **SEARCHES[search]}
    for source in SOURCES:
        wanted = written(original, source, TOKENS, **settings)
        rules = SequenceRules(settings, tuple(settings["eos_token_id"]), TOKENS)
        cache = ported.make_cache()
        ported.encode(mx.array([source]), cache)
        assert search_beams(ported, cache, 2, rules.ends, TOKENS, rules.beams(None), rules.rules()) == wanted


@pytest.fixture(scope="module")
def ported(tmp_path_factory):
    """Original, folder and report of converted models, made once."""
    made = {}

    def get(name, **settings):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            model = save_sequence_model(name, folder / "hf", **settings)
            made[name] = model, folder, mlxport.convert(folder / "hf", folder / "mlx")
        return made[name]

    return get


GIVEN = {"forced_bos_token_id": 40, "no_repeat_ngram_size": 2, "suppress_tokens": [17, 18], "bad_words_ids": [[50]]}


@pytest.mark.parametrize("name", ["bart", "t5", "marian"])  # whose sinusoids no checkpoint has
def test_generate_writes_what_transformers_writes(ported, name):
    original, folder, report = ported(name, **(GIVEN if name == "bart" else {}))
    assert report.parity.passed
    done = "chunks, saved cache: ok; batch: this model counts" if name == "marian" else "chunks, batch, saved cache: ok"
    assert f"generation: 32 tokens equal; {done}" in report.parity.summary()
    record = json.loads((folder / "mlx/mlxport.json").read_text())
    assert record["options"]["layout"] == "generated-seq2seq"
    loaded = mlxport.run.load(folder / "mlx")
    source = loaded.tokenizer.encode("hello small world")
    wanted = written(original, source, TOKENS)
    result = mlxport.generate(loaded, "hello small world", max_tokens=TOKENS, ignore_chat_template=True)
    ends = [] if result.end_token is None else [result.end_token]
    assert [*result.tokens, *ends] == wanted and result.prompt_tokens == len(source)


def test_beams_and_languages_of_a_folder(ported, tmp_path):
    original, folder, _ = ported("bart", **GIVEN)
    shutil.copytree(folder / "mlx", tmp_path / "mlx")
    tokenizer = NllbTokenizer()
    tokenizer.save_pretrained(tmp_path / "mlx")
    settings = json.loads((folder / "mlx/generation_config.json").read_text()) | {"num_beams": 3, "max_length": 13}
    (tmp_path / "mlx/generation_config.json").write_text(json.dumps(settings))
    loaded = mlxport.run.load(tmp_path / "mlx")
    options = {"ignore_chat_template": True, "source_lang": "deu_Latn", "target_lang": "fra_Latn"}
    source = tokenizer._build_translation_inputs("a b", return_tensors="pt", src_lang="deu_Latn", tgt_lang="fra_Latn")
    given = settings | {"forced_bos_token_id": source["forced_bos_token_id"], "max_new_tokens": None}
    for beams in (None, 1, 2):
        wanted = written(
            original, source["input_ids"][0].tolist(), 0, **given | ({"num_beams": beams} if beams else {})
        )
        result = mlxport.generate(loaded, "a b", num_beams=beams, **options)
        assert [*result.tokens, *([] if result.end_token is None else [result.end_token])] == wanted
    for wrong, named in (({"num_beams": 0}, "--num-beams 0"), ({"num_beams": 2, "temp": 0.5}, "--temp")):
        with pytest.raises(UsageError, match=named):
            mlxport.generate(loaded, "a b", **wrong)
    assert mlxport.generate(loaded, "a b", temp=0.5, seed=1).generation_tokens > 0


def test_it_neither_chats_nor_continues_a_text(ported):
    _, folder, _ = ported("bart")
    with pytest.raises(UsageError, match="reads with an encoder") as told:
        mlxport.run.chat(folder / "mlx")
    assert f'mlxport run {folder / "mlx"} "a text"' in told.value.hint
    with pytest.raises(UsageError, match="reads with an encoder"):
        mlxport.AutoModelForCausalLM.from_pretrained(folder / "mlx")


def test_bits_are_chosen_and_calibrated_on_what_it_reads_and_writes(tmp_path):
    save_sequence_model("t5", tmp_path / "hf")
    (tmp_path / "text.txt").write_text("hello small world and other words. " * 60)
    report = mlxport.convert(tmp_path / "hf", tmp_path / "mlx", target_bpw=12, calibrate=tmp_path / "text.txt")
    assert report.parity.passed and report.allocation.used_bytes <= report.allocation.limit_bytes
    assert "that it reads and writes itself" in report.allocation.predictor
    assert "calibrated, the output measures" in report.allocation.predictor
    modules = json.loads((tmp_path / "mlx/mlxport.json").read_text())["calibration"]["modules"]
    read = [path for path, how in modules.items() if how["method"] == "error feedback"]
    assert len(read) == len(modules) and any("EncDecAttention.k" in path for path in read)
    assert mlxport.generate(tmp_path / "mlx", "hello", max_tokens=3).generation_tokens == 3


def test_what_was_written_can_be_taken_back(emitted):
    _, ported, _ = emitted("t5")
    cache = ported.make_cache()
    ported.encode(mx.array([SOURCES[0]]), cache)
    first = ported(mx.array([[2, 5, 9]]), cache)
    trim_prompt_cache([layer[1] for layer in cache], 2)
    assert mx.allclose(ported(mx.array([[5, 9]]), cache), first[:, 1:], atol=1e-4)


def test_a_decoder_that_forgets_how_many_tokens_came_before_is_found(emitted):
    _, ported, port = emitted("bart")
    source = execute(port.source.replace("cache[0][1].offset", "0"))
    wrong = source.Model(source.ModelArgs())
    wrong.load_weights(tree_flatten(ported.parameters()))
    example = Example(
        "example", (), {"input_ids": torch.tensor([SOURCES[0]]), "decoder_input_ids": torch.tensor([[2, 5, 9]])}
    )
    assert not check_steps(ported, example, "float32", None, None).failures
    failures = check_steps(wrong, example, "float32", None, None).failures
    assert any("generated token 2 after a prompt of 11 tokens differs" in failure for failure in failures)


def test_an_encoder_that_counts_blocks_is_refused_by_the_lengths_that_it_was_captured_at():
    sizes = {
        **T5,
        "num_layers": 1,
        "local_radius": 4,
        "global_block_size": 4,
        "encoder_attention_type": "transient-global",
    }
    model = randomised(transformers.LongT5Config(vocab_size=40, decoder_start_token_id=2, **sizes))
    with pytest.raises(UnsupportedError, match="that of a text of 6 to 7 tokens") as refused:
        emit_step(model)
    assert "--no-cache" in str(refused.value.hint)
