from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models

from mlxport.cli.show.checkpoint_facts import show_inspection
from mlxport.errors import ConfigError
from mlxport.inspect.dtype_counts import count_parameters, describe_quantization
from mlxport.inspect.inspection import Inspection, inspect, inspect_checkpoint
from mlxport.model_config import ModelConfig
from mlxport.source import open_checkpoint
from mlxport.types import Checkpoint, TensorRef

EXAMPLES = Path(__file__).parents[2] / "examples"


def write_tokenizer(folder: Path) -> None:
    """512 tokens: three special ones, every byte, and as many more."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *(f"t{n}" for n in range(253))]
    tokenizer = Tokenizer(models.BPE({token: n for n, token in enumerate(tokens)}, [], unk_token="<unk>"))
    tokenizer.add_special_tokens(tokens[:3])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **names, "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").write_text(json.dumps(names))


@pytest.fixture(scope="session")
def _stories(tmp_path_factory) -> Path:
    """A checkpoint with the sizes and the files of stories260K, which transformers 4 wrote; its weights are random."""
    folder, hidden, middle, layers = tmp_path_factory.mktemp("inspection") / "stories", 64, 172, 5
    folder.mkdir()
    shapes = {"model.embed_tokens": (512, hidden), "model.norm": (hidden,)}
    for layer in (f"model.layers.{n}." for n in range(layers)):
        shapes |= {layer + name: (hidden,) for name in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {f"{layer}self_attn.{name}_proj": (hidden, hidden) for name in "qo"}
        shapes |= {f"{layer}self_attn.{name}_proj": (hidden // 2, hidden) for name in "kv"}
        shapes |= {f"{layer}mlp.{name}_proj": (middle, hidden) for name in ("gate", "up")}
        shapes[f"{layer}mlp.down_proj"] = (hidden, middle)
    random = np.random.default_rng(0)
    arrays = {f"{name}.weight": random.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    save_file(arrays, folder / "model.safetensors", {"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "intermediate_size": middle, "num_hidden_layers": layers, "num_attention_heads": 8, "num_key_value_heads": 4,
        "head_dim": 8, "vocab_size": 512, "max_position_embeddings": 512, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
        "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None, "torch_dtype": "float32", "use_cache": True,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text('{"bos_token_id": 1, "eos_token_id": 2, "do_sample": false}')
    write_tokenizer(folder)
    return folder


@pytest.fixture
def stories(_stories, tmp_path) -> Path:
    """A copy of it, to be broken at will."""
    return Path(shutil.copytree(_stories, tmp_path / "stories"))


def edit(file: Path, **changes) -> None:
    data = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({k: v for k, v in {**data, **changes}.items() if v is not None}))


def look(folder: Path) -> Inspection:
    found = inspect(folder)
    assert found == inspect_checkpoint(open_checkpoint(folder))
    return found


def shown(inspection: Inspection) -> str:
    out = io.StringIO()
    show_inspection(inspection, Console(file=out, width=200))
    return out.getvalue()


def refs(**tensors: tuple[str, tuple[int, ...]]) -> dict[str, TensorRef]:
    found, offset = {}, 0
    for name, (dtype, shape) in tensors.items():
        found[name] = TensorRef(name, dtype, shape, Path("model.safetensors"), offset)
        offset += found[name].nbytes
    return found


def test_what_is_in_a_checkpoint(stories):
    found = look(stories)
    assert found.architecture == "LlamaForCausalLM" and found.model_type == "llama" and found.mlx_lm == "llama"
    assert found.parameters == 260_032 and found.nbytes == 1_040_128 and found.tensors == 47
    assert {dtype: count.tensors for dtype, count in found.dtypes.items()} == {"F32": 47}
    assert found.largest[0].name == "model.embed_tokens.weight" and found.largest[0].shape == (512, 64)
    assert (found.layers, found.vocabulary, found.context_length, found.tied) == (5, 512, 512, True)
    assert found.rope == {"rope_theta": 10000.0}
    assert found.tokenizer.vocabulary == 512 and not found.tokenizer.chat_template
    assert found.tokenizer.special == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    assert found.quantization is None and not found.mlx_format and found.config_changes == ()
    assert found.files == {"model.safetensors": 1_040_128} and found.license is None
    assert found.problems == ("no chat template: fine for a base model, but mlxport chat needs one",)


def test_it_is_json_and_text(stories):
    found = look(stories)
    assert json.loads(json.dumps(found.to_json()))["dtypes"]["F32"] == {
        "tensors": 47,
        "elements": 260_032,
        "nbytes": 1_040_128,
    }
    text = shown(found)
    for part in ("260,032", "LlamaForCausalLM (llama)", "1.04 MB in 47 tensors", "PyTorch", "! no chat template"):
        assert part in text


def test_a_checkpoint_without_faults_says_so(stories):
    (stories / "chat_template.jinja").write_text("{{ messages }}")
    (stories / "README.md").write_text("---\nlicense: mit\n---\n")
    found = look(stories)
    assert found.problems == () and found.tokenizer.chat_template and found.license == "mit"
    assert "nothing is wrong with it" in shown(found)


def unlink_tokenizer(folder):
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink()


FAULTS = {
    "dtype": (
        lambda f: edit(f / "config.json", torch_dtype="bfloat16"),
        "config.json says bfloat16, most weights are F32",
    ),
    "new dtype key": (lambda f: edit(f / "config.json", torch_dtype=None, dtype="float16"), "config.json says float16"),
    "vocabulary": (lambda f: edit(f / "config.json", vocab_size=600), "has 512 rows"),
    "no tokenizer": (unlink_tokenizer, "has no tokenizer"),
    "tokenizer of another": (
        lambda f: edit(f / "tokenizer.json", added_tokens=[{"id": 9000, "content": "x"}]),
        "is for another vocabulary",
    ),
    "marker without a row": (
        lambda f: edit(f / "tokenizer.json", added_tokens=[{"id": 512, "content": "<image>", "special": True}]),
        "<image> (id 512) has no row in the embedding",
    ),
    "untied without head": (lambda f: edit(f / "config.json", tie_word_embeddings=False), "not tied, and the weights"),
    "architecture": (lambda f: edit(f / "config.json", model_type="zzz"), "mlx-lm has no architecture 'zzz'"),
    "refused setting": (lambda f: edit(f / "config.json", hidden_act="gelu"), "not convertible for mlx-lm"),
    "end of sequence": (lambda f: edit(f / "generation_config.json", eos_token_id=[2, 512]), "eos_token_id 512 is not"),
    "padding": (lambda f: edit(f / "generation_config.json", pad_token_id=-1), "pad_token_id -1 is not an id"),
    "penalty": (lambda f: edit(f / "generation_config.json", repetition_penalty=1.1), "repetition_penalty 1.1"),
    "generation config": (
        lambda f: (f / "generation_config.json").write_text("{"),
        "generation_config.json is not JSON",
    ),
    "tokenizer config": (lambda f: (f / "tokenizer_config.json").write_text("[]"), "is not a JSON object"),
}


def test_what_becomes_a_port_has_no_fault(stories):
    edit(stories / "config.json", model_type="t5", architectures=["T5ForConditionalGeneration"])
    found = look(stories)
    assert not found.port and found.mlx_lm is None
    assert "of its own" in found.way_out
    assert not [problem for problem in found.problems if "architecture" in problem]


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_wrong_is_said(stories, name):
    breaking, message = FAULTS[name]
    breaking(stories)
    found = look(stories)
    assert [problem for problem in found.problems if message in problem], found.problems
    json.dumps(found.to_json())


def test_a_value_that_no_model_can_have_is_refused(stories):
    edit(stories / "config.json", rms_norm_eps="x")
    with pytest.raises(ConfigError, match="rms_norm_eps is 'x', expected a number"):
        look(stories)


def test_no_end_of_sequence_is_said(stories):
    edit(stories / "config.json", eos_token_id=None)
    (stories / "generation_config.json").unlink()
    assert any("no eos_token_id" in problem for problem in look(stories).problems)


def test_rope_settings_that_only_transformers_5_reads_are_shown(stories):
    edit(stories / "config.json", rope_theta=None, rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    found = look(stories)
    assert any("rope_theta 500000" in change for change in found.config_changes)
    assert not any("mlx-lm computes" in problem for problem in found.problems)
    # The same config beside weights that are MLX's already is a silently wrong model.
    edit(stories / "mlxport.json", version="0")
    assert any("mlx-lm computes something else" in problem for problem in look(stories).problems)


@pytest.mark.parametrize("options", [{}, {"q_bits": 4}, {"q_bits": 3}, {"q_bits": 8}, {"q_mode": "mxfp4"}])
def test_outputs_of_mlx_lm_have_the_same_number_of_parameters(stories, tmp_path, options):
    from mlx_lm import convert

    if "q_bits" in options:
        options["q_group_size"] = 32
    convert(str(stories), str(tmp_path / "out"), quantize=bool(options), **options)
    found = look(tmp_path / "out")
    assert found.mlx_format and found.parameters == 260_032
    if options:
        assert found.quantization["method"] == "mlx" and found.quantization["group_size"] == 32
        assert found.quantization["bits"] == options.get("q_bits", 4)
        assert found.nbytes < 1_040_128 and "U32" in found.dtypes
    assert not any("mlx-lm" in problem for problem in found.problems)


AWQ = {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128}}
PACKED = {
    "quantization_config": {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 8}}}}
}
MLX = {"quantization": {"group_size": 64, "bits": 4, "a": {"group_size": 32, "bits": 6, "mode": "affine"}, "b": False}}
COUNTS = {
    "awq": (
        AWQ,
        {"a.qweight": ("I32", (256, 16)), "a.qzeros": ("I32", (2, 16)), "a.scales": ("F16", (2, 128))},
        256 * 128,
        {"method": "awq", "bits": 4, "group_size": 128},
    ),
    "compressed-tensors": (
        PACKED,
        {"a.weight_packed": ("I32", (8, 16)), "a.weight_scale": ("BF16", (8, 1)), "a.weight_shape": ("I64", (2,))},
        8 * 64,
        {"method": "compressed-tensors", "bits": 8},
    ),
    "fp8 blocks": (
        {"quantization_config": {"quant_method": "fp8"}},
        {"a.weight": ("F8_E4M3", (128, 128)), "a.weight_scale_inv": ("F32", (1, 1))},
        128 * 128,
        {"method": "fp8"},
    ),
    "bitsandbytes": (
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        {
            "a.weight": ("U8", (2048, 1)),
            "a.weight.absmax": ("U8", (64,)),
            "a.weight.quant_map": ("F32", (16,)),
            "a.weight.quant_state.bitsandbytes__nf4": ("U8", (90,)),
        },
        4096,
        {"method": "bitsandbytes"},
    ),
    "gpt-oss": (
        {"quantization_config": {"quant_method": "mxfp4"}},
        {"a.up_blocks": ("U8", (2, 8, 4, 16)), "a.up_scales": ("U8", (2, 8, 4)), "a.up_bias": ("BF16", (2, 8))},
        2 * 8 * 4 * 32 + 16,
        {"method": "mxfp4"},
    ),
    "mlx, mixed": (
        MLX,
        {
            "a.weight": ("U32", (8, 12)),
            "a.scales": ("F16", (8, 2)),
            "a.biases": ("F16", (8, 2)),
            "b.weight": ("F16", (4, 4)),
            "c.weight": ("U32", (8, 16)),
            "c.scales": ("F16", (8, 2)),
            "c.biases": ("F16", (8, 2)),
            "c.bias": ("F16", (8,)),
        },
        8 * 64 + 16 + 8 * 128 + 8,
        {"method": "mlx", "mode": "affine", "bits": 4, "group_size": 64, "overrides": 2},
    ),
    "plain tensors with such names": ({}, {"a.weight": ("F16", (4, 4)), "a.scales": ("F16", (4,))}, 20, None),
}


@pytest.mark.parametrize("name", COUNTS)
def test_packed_weights_are_counted_unpacked(name):
    config, tensors, parameters, quantization = COUNTS[name]
    assert count_parameters(ModelConfig(config), refs(**tensors)) == parameters
    assert describe_quantization(ModelConfig(config), refs(**tensors)) == quantization


def test_tensors_that_share_their_bytes_count_once():
    tensors = refs(a=("F32", (4, 4)))
    tensors["b"] = TensorRef("b", "F32", (4, 4), Path("model.safetensors"), 0)
    assert count_parameters(ModelConfig({}), tensors) == 16


@pytest.mark.parametrize("value", [None, 7, "x", [1], {"a": 1}, True, -1, [[]], {"text_config": 3}])
@pytest.mark.parametrize(
    "key",
    ["architectures", "vocab_size", "num_hidden_layers", "quantization", "quantization_config", "text_config", "dtype",
     "rope_parameters", "tie_word_embeddings", "eos_token_id", "max_position_embeddings"],
)  # fmt: skip
def test_odd_configs_break_nothing(tmp_path, key, value):
    tensors = refs(**{"model.embed_tokens.weight": ("F16", (8, 4)), "x": ("F16", (0,))})
    config = {"model_type": "llama", key: value}
    found = inspect_checkpoint(Checkpoint(tmp_path, config, tensors, (Path("model.safetensors"),)))
    json.dumps(found.to_json())
    assert "x" in shown(found)
    assert found.mlx_format is (True if key == "quantization" and isinstance(value, dict) else None)
    assert found.parameters == 32 and any("1 tensors are empty" in problem for problem in found.problems)


def test_hostile_names_are_printed_as_they_are(tmp_path):
    tensors = refs(**{"[red]\x1b[31m\x07": ("F16", (8, 4))})
    text = shown(inspect_checkpoint(Checkpoint(tmp_path, {"model_type": "[bold]x"}, tensors, ())))
    assert "[red]\\x1b[31m\\x07" in text and "[bold]x" in text and "\x1b" not in text


def change(source: Path, name: str, **values) -> None:
    (source / name).write_text(json.dumps({**json.loads((source / name).read_text()), **values}))


def test_code_is_named_and_not_run(source):
    (source / "modeling_x.py").write_text("raise SystemExit('run')\n")
    (source / "helper.py").write_text("raise SystemExit('run')\n")
    change(source, "config.json", auto_map={"AutoModel": "modeling_x.M", "AutoConfig": "modeling_x.C"})
    change(source, "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_x.T", None]})
    assert inspect(source).code == (
        "auto_map in config.json names modeling_x.M, modeling_x.C: runs only with --trust-remote-code",
        "auto_map in tokenizer_config.json names tokenization_x.T: runs only with --trust-remote-code",
        "helper.py, modeling_x.py: runs only with --trust-remote-code",
    )
    change(source, "config.json", auto_map="modeling_x.M", model_file="../x.py")
    outside, mapped, *_ = inspect(source).code
    assert "'../x.py' is not a plain path" in outside and "auto_map in config.json names modeling_x.M" in mapped


def test_the_task_is_told_and_how_it_is_run(tmp_path):
    config = {"architectures": ["BertForSequenceClassification"], "model_type": "bert", "vocab_size": 40}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"bert.embeddings.word_embeddings.weight": np.zeros((40, 8), np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "vocab.txt").write_text("\n".join(f"w{index}" for index in range(40)))
    found = inspect(tmp_path)
    assert found.task == "text-classification" and not any("chat template" in problem for problem in found.problems)
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_file": "model.py"}))
    assert "mlxport run" in inspect(tmp_path).way_out


@pytest.mark.parametrize(
    ("name", "task", "processor"),
    [
        ("tiny-digits", "image-classification", ("ViTImageProcessor", 16, 16, None)),
        ("tiny-shapes", "zero-shot-image-classification", ("CLIPImageProcessor", 32, 32, None)),
        ("tiny-keypad", "automatic-speech-recognition", ("Wav2Vec2FeatureExtractor", None, None, 8000)),
    ],
)
def test_what_prepares_pictures_and_sound_is_said(name, task, processor):
    found = look(EXAMPLES / name)
    assert found.task == task and found.processor is not None
    told = (found.processor.kind, found.processor.height, found.processor.width, found.processor.rate)
    assert told == processor and found.problems == ()
    assert (found.tokenizer is None) == (name == "tiny-digits") == (not found.reads_text)


def test_a_classifier_of_pictures_without_a_processor_says_so(tmp_path):
    folder = Path(shutil.copytree(EXAMPLES / "tiny-digits", tmp_path / "digits"))
    (folder / "preprocessor_config.json").unlink()
    (problem,) = look(folder).problems
    assert "does not say how a picture is prepared" in problem
    (folder / "preprocessor_config.json").write_text("[]")
    assert any("is not a JSON object" in problem for problem in look(folder).problems)
