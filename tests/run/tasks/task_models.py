"""Tiny models of each task as publishers lay them out, converted once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

import mlxport

LABELS = {index: f"label {index}" for index in range(4)}
ENTITIES = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC"}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "dog", "is", "on", "a", "mat", "paris", "."]
LETTERS = [chr(code) for code in range(97, 123)]
BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 80,
}


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """Weights with which labels differ between inputs."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.6 / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.1
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return model.eval()


def word_tokenizer(folder: Path, longest: int = 64, **settings: Any) -> int:
    """A WordPiece tokenizer of words and letters; its size."""
    words = [*WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    made = Tokenizer(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=longest, **settings,
    ).save_pretrained(folder)  # fmt: skip
    return len(words)


def bert(folder: Path, kind: Any, **settings: Any) -> Path:
    """A checkpoint of a BERT with some head."""
    size = word_tokenizer(folder)
    randomised(kind(transformers.BertConfig(vocab_size=size, **BERT, **settings))).save_pretrained(folder)
    return folder


def distilbert(folder: Path) -> Path:
    """One for masks, whose output layer is tied to the embeddings."""
    size = word_tokenizer(folder)
    sizes = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 80}
    config = transformers.DistilBertConfig(vocab_size=size, **sizes)
    randomised(transformers.DistilBertForMaskedLM(config)).save_pretrained(folder)
    return folder


def sentence_files(folder: Path, pooling: dict[str, Any], **settings: Any) -> None:
    """What sentence-transformers writes beside a model: settings are of config_sentence_transformers.json."""
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    written = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(written))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **pooling}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64, "do_lower_case": False}))
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))


def _sentences(folder: Path) -> Path:
    bert(folder, transformers.BertModel)
    pooling = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
    sentence_files(folder, pooling, prompts={"query": "the ", "passage": "a "})
    return folder


def _pictures(folder: Path) -> Path:
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=32, patch_size=8,
        id2label=LABELS, label2id={name: index for index, name in LABELS.items()},
    )  # fmt: skip
    randomised(transformers.ViTForImageClassification(config)).save_pretrained(folder)
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def _speech(folder: Path) -> Path:
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *map(str.upper, LETTERS)]
    (folder / "vocab.json").write_text(json.dumps({letter: index for index, letter in enumerate(letters)}))
    tokens = {"tokenizer_class": "Wav2Vec2CTCTokenizer", "unk_token": "<unk>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokens, "word_delimiter_token": "|"}))
    extractor = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": 16000, "do_normalize": True}
    (folder / "preprocessor_config.json").write_text(json.dumps({**extractor, "feature_size": 1}))
    config = transformers.Wav2Vec2Config(
        vocab_size=len(letters), hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48,
        conv_dim=(16,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, pad_token_id=0,
    )  # fmt: skip
    randomised(transformers.Wav2Vec2ForCTC(config)).save_pretrained(folder)
    return folder


SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
EYES = {**SIZES, "image_size": 32, "patch_size": 8}


def _clip(folder: Path) -> Path:
    """As of 2021: quick_gelu, and a preprocessor_config.json of transformers 4."""
    size = word_tokenizer(folder)
    words = {**SIZES, "max_position_embeddings": 64, "vocab_size": size, "bos_token_id": 2, "eos_token_id": 3}
    eyes = {**EYES, "hidden_size": 40}
    config = transformers.CLIPConfig(text_config=words, vision_config=eyes, projection_dim=16)
    randomised(transformers.CLIPModel(config)).save_pretrained(folder)
    settings = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 32, "crop_size": 32, "resample": 3}
    flags = {"do_resize": True, "do_center_crop": True, "do_normalize": True}
    mean = {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
    (folder / "preprocessor_config.json").write_text(json.dumps({**settings, **flags, **mean}))
    return folder


def siglip(folder: Path) -> Path:
    """A scale and a bias, and texts that are padded to 64 tokens without a mask."""
    size = word_tokenizer(folder, model_input_names=["input_ids"])
    words = {**SIZES, "max_position_embeddings": 64, "vocab_size": size}
    config = transformers.SiglipConfig(text_config=words, vision_config=EYES)
    randomised(transformers.SiglipModel(config)).save_pretrained(folder)
    settings = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def align(folder: Path) -> Path:
    """An EfficientNet beside a BERT, its cosines divided by a temperature; texts are padded to 64 tokens."""
    size = word_tokenizer(folder)
    seen = {
        "image_size": 64, "width_coefficient": 1.0, "hidden_dim": 16, "in_channels": [32, 8], "out_channels": [8, 16],
        "kernel_sizes": [3, 5], "depthwise_padding": [], "strides": [1, 2], "num_block_repeats": [1, 1],
        "expand_ratios": [1, 4], "depth_coefficient": 1.0, "num_hidden_layers": 8,
    }  # fmt: skip
    config = transformers.AlignConfig(
        text_config={**BERT, "vocab_size": size}, vision_config=seen, projection_dim=16, temperature_init_value=0.3
    )
    model = randomised(transformers.AlignModel(config))
    generator = torch.Generator().manual_seed(2)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    model.save_pretrained(folder)
    settings = {
        "image_processor_type": "EfficientNetImageProcessor", "size": {"height": 64, "width": 64},
        "do_center_crop": False, "image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28],
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def naflex(folder: Path) -> Path:
    """A SigLIP 2 that reads pictures as patches of their own shape."""
    size = word_tokenizer(folder, model_input_names=["input_ids"])
    words = {**SIZES, "max_position_embeddings": 64, "vocab_size": size}
    seen = {**SIZES, "patch_size": 8, "num_patches": 25}
    randomised(
        transformers.Siglip2Model(transformers.Siglip2Config(text_config=words, vision_config=seen))
    ).save_pretrained(folder)
    settings = {"image_processor_type": "Siglip2ImageProcessor", "patch_size": 8, "max_num_patches": 36}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


SOURCES = {
    "text-classification": lambda folder: bert(folder, transformers.BertForSequenceClassification, id2label=LABELS),
    "token-classification": lambda folder: bert(folder, transformers.BertForTokenClassification, id2label=ENTITIES),
    "fill-mask": lambda folder: bert(folder, transformers.BertForMaskedLM),
    "feature-extraction": lambda folder: bert(folder, transformers.BertModel),
    "sentence-similarity": _sentences,
    "image-classification": _pictures,
    "zero-shot-image-classification": _clip,
    "automatic-speech-recognition": _speech,
}


class Converted:
    """Models of tasks, each converted when it is first asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.reports: dict[str, mlxport.ConvertReport] = {}

    def source(self, task: str) -> Path:
        """The original's folder."""
        folder = self.root / f"{task}-original"
        if not folder.exists():
            folder.mkdir()
            torch.manual_seed(0)
            SOURCES[task](folder)
        return folder

    def __call__(self, task: str) -> Path:
        """The converted folder."""
        folder = self.root / task
        if not folder.exists():
            self.reports[task] = mlxport.convert(self.source(task), folder, quiet=True)
        return folder

    def original(self, task: str) -> Any:
        """transformers' pipeline of the original; pictures are resized by Pillow, torchvision or not."""
        folder, given = str(self.source(task)), {}
        if task == "image-classification":
            given["image_processor"] = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
        return transformers.pipeline(task, model=folder, device="cpu", **given)
