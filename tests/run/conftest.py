"""Tiny real models: seeded random ones written as mlx-lm folders, and the trained one of the examples."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from external import external

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny-llama"
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"]
VOCABULARY = 256 + len(SPECIAL)
LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCABULARY,
    "rope_theta": 10000.0,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "eos_token_id": 256,
}
WINDOWS = {
    "model_type": "gemma3_text",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "rms_norm_eps": 1e-6,
    "vocab_size": VOCABULARY,
    "sliding_window": 16,
    "sliding_window_pattern": 2,
    "query_pre_attn_scalar": 32,
    "max_position_embeddings": 256,
    "eos_token_id": 256,
}
MAMBA = {
    "model_type": "mamba",
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "state_size": 8,
    "num_hidden_layers": 2,
    "conv_kernel": 4,
    "use_bias": False,
    "use_conv_bias": True,
    "time_step_rank": 4,
    "eos_token_id": 256,
}


MIXTURE = {
    "model_type": "mixtral",
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "eos_token_id": 256,
}


def write_tokenizer(folder: Path, template: str | None = TEMPLATE) -> None:
    """Bytes as tokens, the special ones after them; nothing is trained."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token=SPECIAL[0],
        pad_token=SPECIAL[1],
        additional_special_tokens=SPECIAL[2:],
    )
    if template is not None:
        tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)


def write_model(
    folder: Path, config: dict, template: str | None = TEMPLATE, tokenizer: bool = True, dtype: str = "float32"
) -> Path:
    """A random model as mlx-lm saves it."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.utils import _get_classes

    folder.mkdir(parents=True, exist_ok=True)
    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(config))
    mx.random.seed(3)
    weights = {}
    for name, value in tree_flatten(model.parameters()):
        random = mx.random.normal(value.shape) * 0.4
        weights[name] = (random if value.ndim > 1 and "A_log" not in name else value).astype(getattr(mx, dtype))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))
    if tokenizer:
        write_tokenizer(folder, template)
    return folder


@pytest.fixture(scope="session")
def llama(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "llama", LLAMA)


@pytest.fixture(scope="session")
def wide(tmp_path_factory) -> Path:
    """A llama with heads that a quantized cache can hold."""
    return write_model(tmp_path_factory.mktemp("models") / "wide", {**LLAMA, "head_dim": 32})


@pytest.fixture(scope="session")
def windows(tmp_path_factory) -> Path:
    """Every other layer attends to a window of 16 tokens."""
    return write_model(tmp_path_factory.mktemp("models") / "windows", WINDOWS)


@pytest.fixture(scope="session")
def mamba(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "mamba", MAMBA)


@pytest.fixture(scope="session")
def trained_source(tmp_path_factory) -> Path:
    """examples/tiny-llama as a base model is: without a chat template, and without a padding token in its configs."""
    folder = Path(shutil.copytree(EXAMPLE, tmp_path_factory.mktemp("models") / "trained"))
    (folder / "chat_template.jinja").unlink()
    for file in (folder / "config.json", folder / "generation_config.json"):
        config = json.loads(file.read_text())
        del config["pad_token_id"]
        file.write_text(json.dumps(config))
    return folder


def as_mlx(source: Path, folder: Path) -> Path:
    """What becomes of a checkpoint in float32."""
    from mlxport import convert

    convert(source, folder, dtype="float32", verify="none")
    return folder


@pytest.fixture(scope="session")
def trained(trained_source, tmp_path_factory) -> Path:
    return as_mlx(trained_source, tmp_path_factory.mktemp("models") / "out")


@pytest.fixture(scope="session")
def stories(tmp_path_factory) -> Path:
    """A model that writes English."""
    return as_mlx(external("stories260K"), tmp_path_factory.mktemp("models") / "stories")


@pytest.fixture(scope="session")
def half_mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of experts in bfloat16."""
    return write_model(tmp_path_factory.mktemp("models") / "half", MIXTURE, dtype="bfloat16")
