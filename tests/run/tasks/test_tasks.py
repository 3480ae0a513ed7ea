"""Every task: found, compared with transformers' pipeline when a model is converted, run by one command."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import transformers
from PIL import Image
from task_models import LABELS, SOURCES, bert, distilbert, randomised, sentence_files, word_tokenizer

import mlxport
from checkpoints import edit_json
from mlxport.errors import MlxportError, UnsupportedError, UsageError
from mlxport.layouts.generated.layout import GENERATED
from mlxport.output.record import read_record
from mlxport.run.tasks.task_options import OPTIONS
from mlxport.run.tasks.task_table import TASKS, find_task, pipeline_class, task_of_folder
from mlxport.source import open_checkpoint

TEXTS = ["the cat is on a mat", "paris", "the dog is a cat ."]


def test_every_task_has_a_file_and_options():
    assert set(OPTIONS) == set(TASKS)
    for task in TASKS:
        kind = pipeline_class(task)
        assert (kind.task, kind.options) == (task, OPTIONS[task])


@pytest.mark.parametrize("task", SOURCES)
def test_a_conversion_ends_with_the_tasks_own_comparison(converted, task):
    folder = converted(task)
    found = converted.reports[task].parity.task
    assert (found.task, found.missing, found.failures, found.judged) == (task, "", [], True)
    assert found.inputs >= 2 and found.error < 1e-5
    assert read_record(folder)["task"] == task
    assert "mlxport run PATH" in (folder / "README.md").read_text()


@pytest.mark.parametrize("task", ["text-classification", "token-classification", "feature-extraction"])
def test_batches_with_padding_give_what_transformers_gives_one_by_one(converted, task):
    theirs, ours = converted.original(task), mlxport.pipeline(converted(task))
    for text, mine in zip(TEXTS, ours(TEXTS), strict=True):
        other, mine = theirs(text), mine if isinstance(mine, list) else [mine]
        assert not ours.compare(mine, other).wrong and ours.compare(mine, other).error < 1e-5
    assert np.shape(ours(TEXTS[0])) == np.shape(theirs(TEXTS[0]))


@pytest.mark.parametrize("strategy", ["simple", "first", "average", "max"])
def test_entities_are_joined_as_transformers_joins_them(converted, strategy):
    text = "paris is the catdog on a mat ."
    theirs = converted.original("token-classification")(text, aggregation_strategy=strategy)
    ours = mlxport.pipeline(converted("token-classification"))(text, aggregation_strategy=strategy)
    assert [{**e, "score": pytest.approx(float(e["score"]), abs=1e-5)} for e in theirs] == ours


def test_all_labels_and_another_function(converted):
    theirs, ours = converted.original("text-classification"), mlxport.pipeline(converted("text-classification"))
    for function in ("softmax", "sigmoid", "none"):
        wanted = theirs(TEXTS[0], top_k=4, function_to_apply=function)
        got = ours(TEXTS[0], top_k=4, function_to_apply=function)
        assert [{**e, "score": pytest.approx(e["score"], abs=1e-5)} for e in wanted] == got


def test_several_masks(converted):
    text = "the [MASK] is on a [MASK]"
    wanted = converted.original("fill-mask")(text, top_k=3)
    got = mlxport.pipeline(converted("fill-mask"))(text, top_k=3)
    assert [[(e["token"], e["token_str"], e["sequence"]) for e in row] for row in got] == [
        [(e["token"], e["token_str"], e["sequence"]) for e in row] for row in wanted
    ]


def test_sentences_with_a_prompt_are_those_of_sentence_transformers(converted):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    theirs = sentence_transformers.SentenceTransformer(str(converted.source("sentence-similarity")), device="cpu")
    ours = mlxport.pipeline(converted("sentence-similarity"))
    for name in (None, "query", "passage"):
        wanted = theirs.encode(TEXTS, prompt_name=name)
        assert np.abs(np.array(ours(TEXTS, prompt_name=name)) - wanted).max() < 1e-5
    with pytest.raises(UsageError, match="query, passage"):
        ours(TEXTS, prompt_name="question")


HEADS = {
    "masks": lambda folder: bert(folder, transformers.BertForMaskedLM),
    "labels": lambda folder: bert(folder, transformers.BertForSequenceClassification, id2label=LABELS),
    "distilled": distilbert,
}


@pytest.mark.parametrize("head", HEADS)
def test_a_sentence_transformers_folder_gives_vectors_whatever_head_its_config_names(head, tmp_path):
    """Trained on from a model with a head, or saved as one: sentence-transformers loads the model without it."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    source = tmp_path / "source"
    source.mkdir()
    HEADS[head](source)
    prompts = {"query": "the cat ", "passage": "a "}
    sentence_files(source, {"pooling_mode_mean_tokens": True}, prompts=prompts, default_prompt_name="query")
    found = mlxport.convert(source, tmp_path / "made", quiet=True).parity.task
    assert (found.task, found.failures) == ("sentence-similarity", []) and found.error < 1e-5
    theirs = sentence_transformers.SentenceTransformer(str(source), device="cpu")
    ours = mlxport.pipeline(tmp_path / "made")
    for name in (None, "passage"):
        assert np.abs(np.array(ours(TEXTS, prompt_name=name)) - theirs.encode(TEXTS, prompt_name=name)).max() < 1e-5
    assert np.abs(np.array(ours(TEXTS)) - np.array(ours(TEXTS, prompt_name="passage"))).max() > 1e-2


DECODERS = {
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3Model, {"head_dim": 8}),
    "gemma3": (
        transformers.Gemma3TextConfig, transformers.Gemma3TextModel,
        {"head_dim": 8, "use_bidirectional_attention": True, "sliding_window": 8, "query_pre_attn_scalar": 8},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_give_the_vectors_of_sentence_transformers(name, tmp_path, command):
    """As Qwen3-Embedding is published: the state of the last token, padded on the left, with prompts."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    source = tmp_path / "source"
    source.mkdir()
    size = word_tokenizer(source, padding_side="left", model_input_names=["input_ids", "attention_mask"])
    kind, model, more = DECODERS[name]
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "max_position_embeddings": 64}
    config = kind(vocab_size=size, num_attention_heads=4, num_key_value_heads=2, **sizes, **more)
    torch.manual_seed(0)
    randomised(model(config)).save_pretrained(source)
    if name == "qwen3":  # its config names the class with an output layer, and its weights have none
        edit_json(source / "config.json", architectures=["Qwen3ForCausalLM"])
    pooling = {"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False, "include_prompt": True}
    sentence_files(source, pooling, prompts={"query": "the cat : ", "document": ""}, similarity_fn_name="cosine")
    report = mlxport.convert(source, tmp_path / "made", quiet=True)
    assert report.layout == "generated" and report.parity.task.task == "sentence-similarity"
    assert not report.parity.task.failures and not report.parity.task.missing and report.parity.task.error < 1e-5
    theirs = sentence_transformers.SentenceTransformer(str(source), device="cpu")
    ours = mlxport.pipeline(tmp_path / "made")
    for prompt in (None, "query", "document"):
        wanted = theirs.encode(TEXTS, prompt_name=prompt)
        assert np.abs(np.array(ours(TEXTS, prompt_name=prompt)) - wanted).max() < 1e-5
    code, out, _ = command(tmp_path / "made", *TEXTS, "--prompt-name", "query", "--similarity")
    assert code == 0 and len(out.splitlines()) == 3


def test_a_reranker_of_sentence_transformers_is_a_classifier(tmp_path):
    bert(tmp_path, transformers.BertForSequenceClassification, id2label=LABELS)
    sentence_files(tmp_path, {})
    edit_json(tmp_path / "sentence_bert_config.json", transformer_task="sequence-classification")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config["architectures"] == ["BertForSequenceClassification"]
    assert find_task(tmp_path, checkpoint.config, GENERATED) == "text-classification"


@pytest.mark.parametrize("pooling", ["max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"])
def test_every_pooling(converted, tmp_path, pooling):
    """Of prompts, too, that do not count in it."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    for number, folder in enumerate((converted.source("feature-extraction"), converted("feature-extraction"))):
        there = tmp_path / str(number)
        there.mkdir()
        for file in folder.iterdir():
            if file.is_file():
                (there / file.name).symlink_to(file) if number == 0 else (there / file.name).write_bytes(
                    file.read_bytes()
                )
        settings = {"embedding_dimension": 32, "pooling_mode": pooling, "include_prompt": False}
        sentence_files(there, settings, prompts={"query": "the cat "})
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "0"), device="cpu")
    ours = mlxport.pipeline(tmp_path / "1", task="sentence-similarity")
    for name in (None, "query"):
        wanted = theirs.encode(TEXTS, prompt_name=name)
        assert np.abs(np.array(ours(TEXTS, prompt_name=name)) - wanted).max() < 1e-5


def test_pictures_in_every_mode_and_turned(converted, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 56, 3), np.uint8)
    picture = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    picture.convert("L").save(tmp_path / "grey.png")
    picture.convert("RGBA").save(tmp_path / "alpha.png")
    picture.convert("P").save(tmp_path / "palette.gif")
    picture.convert("CMYK").save(tmp_path / "print.jpg")
    files = sorted(map(str, tmp_path.iterdir()))
    theirs, ours = converted.original("image-classification"), mlxport.pipeline(converted("image-classification"))
    originals = theirs([Image.open(io.BytesIO(Path(file).read_bytes())) for file in files])
    for mine, other in zip(ours(files, batch_size=2), originals, strict=True):
        assert not ours.compare(mine, other).wrong and ours.compare(mine, other).error < 1e-5


def test_long_sound_is_read_in_pieces_as_transformers_does(converted):
    task = "automatic-speech-recognition"
    theirs, ours = converted.original(task), mlxport.pipeline(converted(task))
    sound = np.concatenate(ours.examples())
    wanted = theirs({"raw": sound, "sampling_rate": 16000}, chunk_length_s=1.5)
    assert ours(sound, chunk_length=1.5)["text"] == wanted["text"]
    assert ours(sound)["text"] == theirs({"raw": sound, "sampling_rate": 16000})["text"]


def test_the_command_prints_lines_json_and_vectors(converted, command, tmp_path):
    code, out, _ = command(converted("text-classification"), TEXTS[0])
    assert code == 0 and out.split()[1:] == ["label", out.split()[-1]]
    code, out, _ = command(converted("text-classification"), *TEXTS, "--json")
    assert code == 0 and [entry["label"][:5] for entry in json.loads(out)] == ["label"] * 3
    file = tmp_path / "vectors.npy"
    code, out, err = command(converted("sentence-similarity"), *TEXTS, "--output", file, "--similarity")
    rows = [[float(number) for number in line.split()] for line in out.splitlines()]
    vectors = np.load(file)
    assert code == 0 and str(file) in err and np.allclose(rows, vectors @ vectors.T, atol=1e-3)


def test_texts_come_from_standard_input(converted, command, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(TEXTS) + "\n\n"))
    code, out, _ = command(converted("feature-extraction"), "-", "--pooling", "mean", "--json")
    assert code == 0 and np.array(json.loads(out)).shape == (3, 32)


@pytest.mark.parametrize(
    ("task", "given", "said"),
    [
        ("text-classification", [], "needs a text"),
        ("text-classification", [" "], "empty"),
        ("text-classification", ["the cat " * 40], "--truncate"),
        ("text-classification", ["a", "--top-k", "0"], "at least 1"),
        ("text-classification", ["a", "--chunk-length", "5"], "not an option of text-classification"),
        ("text-classification", ["a", "--task", "poetry"], "does not exist"),
        ("fill-mask", ["the cat"], r"[MASK]"),
        ("feature-extraction", ["a", "the cat", "--output", "v.npy"], "--pooling mean"),
        ("feature-extraction", ["a", "--similarity"], "--pooling mean"),
        ("feature-extraction", ["a", "--pooling", "mean", "--output", "nowhere/v.npy"], "no folder"),
        ("image-classification", ["nothing.png"], "no such file"),
        ("image-classification", [__file__], "not a picture"),
        ("image-classification", ["."], "not a file"),
        ("image-classification", ["https://example.com/cat.png"], "fetch it first"),
        ("automatic-speech-recognition", [__file__], "not a sound"),
    ],
)
def test_bad_input_is_one_clear_error(converted, command, monkeypatch, tmp_path, task, given, said):
    folder = converted(task)
    monkeypatch.chdir(tmp_path)
    code, out, err = command(folder, *given)
    assert code in (1, 2) and not out
    assert said in err and "hint: " in err and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_text_is_cut_where_that_is_asked_for(converted):
    long = "the cat " * 40
    theirs, ours = converted.original("text-classification"), mlxport.pipeline(converted("text-classification"))
    assert ours.compare(ours(long, truncate=True), theirs(long, truncation=True)).error < 1e-5


@pytest.mark.parametrize(
    ("task", "asked", "works"),
    [
        ("feature-extraction", "text-classification", 'mlxport run {} "a text"'),
        ("text-classification", "feature-extraction", 'mlxport run {} "a text"'),
        ("text-classification", "translate", 'mlxport run {} "a text"'),
        ("fill-mask", "image-text-to-text", 'mlxport run {} "a text"'),
        ("image-classification", "fill-mask", "mlxport run {} picture.jpg"),
        ("automatic-speech-recognition", "text-generation", "mlxport run {} talk.wav"),
    ],
)
def test_another_task_names_the_one_that_the_model_is_for(converted, command, task, asked, works):
    code, out, err = command(converted(task), "the cat", "--task", asked)
    assert (code, out) == (2, "")
    assert f"--task {asked}: this model is for {task}" in err
    assert f"hint: leave --task out: {works.format(converted(task))}\n" in err


@pytest.mark.parametrize(
    "task, served",
    [
        ("fill-mask", "fill-mask"),
        ("sentence-similarity", "sentence-similarity or feature-extraction"),
        ("automatic-speech-recognition", "automatic-speech-recognition or transcribe or translate"),
    ],
)
def test_a_task_that_does_not_exist_names_those_of_the_folder_and_all(converted, command, task, served):
    code, out, err = command(converted(task), "the cat", "--task", "sing")
    assert (code, out) == (2, "") and "--task 'sing' does not exist" in err
    assert f"{converted(task)} is for {served}; all there are: {', '.join(TASKS)}" in err


@pytest.mark.parametrize("flag", ["--task", "--task-name"])
def test_what_letters_cannot_do_is_refused_under_the_flag_that_was_given(converted, command, tmp_path, flag):
    soundfile.write(tmp_path / "a.wav", np.zeros(16000, np.float32), 16000)
    folder = converted("automatic-speech-recognition")
    code, out, err = command(folder, tmp_path / "a.wav", flag, "translate")
    assert (code, out) == (2, "") and f"error: {flag} translate: a model with a CTC head" in err
    assert f"hint: leave {flag} out\n" in err
    code, _, err = command(folder, tmp_path / "a.wav", "--task", "translate", "--task-name", "transcribe")
    assert code == 2 and "--task translate and --task-name transcribe do not agree" in err


def test_vectors_of_tokens_are_to_be_had_of_sentences_models(converted):
    states = mlxport.pipeline(converted("sentence-similarity"), "feature-extraction")("the cat")
    assert np.shape(states) == (1, 4, 32)


@pytest.mark.parametrize("use", [lambda folder: mlxport.generate(folder, "the cat"), mlxport.run.chat])
def test_generate_and_chat_name_run(converted, use):
    with pytest.raises(MlxportError) as told:
        use(converted("fill-mask"))
    assert f'its task is fill-mask: mlxport run {converted("fill-mask")} "a text"' in told.value.hint


def copied(folder: Path, there: Path) -> Path:
    """The files of a folder, elsewhere."""
    there.mkdir()
    for file in folder.iterdir():
        if file.is_file():
            (there / file.name).write_bytes(file.read_bytes())
    return there


def test_what_no_task_is_known_for_says_so(converted, tmp_path):
    folder = copied(converted("feature-extraction"), tmp_path / "bare")
    record = json.loads((folder / "mlxport.json").read_text())
    del record["task"]
    (folder / "mlxport.json").write_text(json.dumps(record))
    assert task_of_folder(folder) == "feature-extraction"  # as of folders that were written before tasks were recorded
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(UnsupportedError, match="nothing says") as told:
        mlxport.pipeline(folder)
    assert "feature-extraction" in told.value.hint


def test_a_result_that_differs_fails_the_verification(converted, tmp_path):
    """Its logits are right, and what it calls them is not."""
    source = converted.source("text-classification")
    folder = copied(converted("text-classification"), tmp_path / "changed")
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {key: f"other {key}" for key in config["id2label"]}
    (folder / "config.json").write_text(json.dumps(config))
    report = mlxport.verify(folder, source, trust_remote_code=True)
    assert not report.passed and "'other" in report.failure_message()


def test_quantized_models_are_compared_and_not_judged(converted, tmp_path):
    eight_bits = {"quantize": 8, "q_group_size": 32, "quiet": True}
    report = mlxport.convert(converted.source("sentence-similarity"), tmp_path / "q8", **eight_bits)
    assert report.parity.passed and not report.parity.task.judged and 0 < report.parity.task.error < 0.1


def test_few_bits_for_vectors_are_advised_against(converted, tmp_path):
    source = converted.source("sentence-similarity")
    four, eight = (
        mlxport.convert(source, tmp_path / "dst", quantize=bits, q_group_size=32, dry_run=True, quiet=True).notes
        for bits in (4, 8)
    )
    assert any("-q 8 keeps" in note for note in four) and not any("-q 8 keeps" in note for note in eight)
