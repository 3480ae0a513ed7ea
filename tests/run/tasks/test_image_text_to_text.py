"""Pictures and text: converted for mlx-vlm, equal to transformers, asked by one command."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import mlxport
from mlxport.cli.app import main
from mlxport.errors import UsageError
from mlxport.output.record import read_record
from mlxport.run.media import extras
from mlxport.run.tasks.picture_inputs import example_pictures
from vision_models import config_of_2025, write_qwen

pytest.importorskip("mlx_vlm")


@dataclass(frozen=True)
class Asked:
    """A converted model, its source, what the conversion reported, two pictures."""

    source: Path
    folder: Path
    report: Any
    pictures: list[str]


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> Asked:
    root = tmp_path_factory.mktemp("pictures")
    source = write_qwen(root / "source")
    pictures = [str(root / f"{index}.png") for index in range(2)]
    for path, picture in zip(pictures, example_pictures(), strict=False):
        picture.resize((90, 60)).save(path)
    report = mlxport.convert(source, root / "made")
    return Asked(source, root / "made", report, pictures)


@pytest.fixture(scope="module")
def pipeline(asked) -> Any:
    return mlxport.pipeline(asked.folder)


def test_text_and_pictures_are_computed_as_transformers_does(asked):
    found = asked.report.parity
    assert asked.report.layout == "mlx-vlm" and not asked.report.not_verified
    assert [row.inputs for row in found.comparisons] == ["text", "two pictures and text"]
    assert all(row.relative < 1e-5 for row in found.comparisons)
    assert len(found.answer) == 8 and found.weights.tensors == 57
    record = read_record(asked.folder)
    assert record["task"] == "image-text-to-text" and record["parity"]["mode"] == "pictures"
    card = (asked.folder / "README.md").read_text()
    assert "as mlx-vlm loads it" in card and "mlxport run PATH picture.jpg --prompt" in card
    for name in ("chat_template.jinja", "preprocessor_config.json", "tokenizer.json"):
        assert (asked.folder / name).read_bytes() == (asked.source / name).read_bytes()


def test_a_run_writes_what_mlx_vlm_writes(asked, pipeline, command):
    from mlx_vlm import generate, load
    from mlx_vlm.prompt_utils import apply_chat_template

    model, processor = load(str(asked.folder))
    prompt = apply_chat_template(processor, model.config, "What?", num_images=2)
    theirs = generate(model, processor, prompt, image=asked.pictures, max_tokens=6, temperature=0.0).text
    code, out, _ = command(asked.folder, "--image", *asked.pictures, "--prompt", "What?", "-m", "6"
    )  # fmt: skip
    assert (code, out) == (0, f"{theirs}\n")
    images = [Image.open(path) for path in asked.pictures]
    given = {"images": images, "text": "What?"}
    assert pipeline(given, max_tokens=6) == [{"input_text": "What?", "generated_text": theirs}]
    assert pipeline(images, prompt="What?", max_tokens=6)[0] == pipeline(given, max_tokens=6)
    one = pipeline({"images": asked.pictures[0], "text": "What?"}, max_tokens=6)
    assert one[0]["generated_text"] != theirs


def test_text_alone_and_a_system_prompt(pipeline):
    plain = pipeline({"text": "What?"}, max_tokens=6)[0]["generated_text"]
    assert plain != pipeline({"text": "What?"}, max_tokens=6, system_prompt="Be brief.")[0]["generated_text"]
    written = "<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\n"
    assert pipeline({"text": written}, max_tokens=6, ignore_chat_template=True)[0]["generated_text"] == plain


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--image", "nothing.png", "--prompt", "x"], "nothing.png: no such file"),
        (["--image", __file__, "--prompt", "x"], "is not a picture that can be read"),
        (["--image", "PICTURE"], "needs a --prompt"),
        ([], "needs a --prompt"),
        (["PICTURE", "--prompt", " "], "the prompt is empty"),
        (["PICTURE", "--prompt", "What?", "-m", "0"], "max_tokens is 0, expected at least 1"),
        (["PICTURE", "--prompt", "What?", "--temp", "-1"], "temp is -1.0, expected 0 or more"),
        (["PICTURE", "--prompt", "What?", "--top-p", "2"], "top_p is 2.0"),
        (["--prompt", "x", "--num-beams", "2"], "--num-beams is not an option of image-text-to-text"),
    ],
)
def test_bad_input(asked, pipeline, arguments, said, command, monkeypatch):
    monkeypatch.setattr("mlxport.run.tasks.opened_task.pipeline", lambda *_, **__: pipeline)
    arguments = [asked.pictures[0] if part == "PICTURE" else part for part in arguments]
    code, _, error = command(asked.folder, *arguments)
    assert code == 2 and said in error and "hint:" in error


def test_a_prompt_without_places_for_its_pictures_is_refused(asked, pipeline):
    with pytest.raises(UsageError, match="pictures and prompt"):
        pipeline({"images": asked.pictures, "text": "What?"}, ignore_chat_template=True, max_tokens=2)


def test_without_mlx_vlm_it_says_how_to_get_it(asked, monkeypatch, tmp_path):
    def missing(module: str) -> Any:
        raise ImportError(module)

    monkeypatch.setattr(extras.importlib, "import_module", missing)
    with pytest.raises(UsageError, match="needs mlx_vlm, which is not installed") as error:
        mlxport.run.vision_language.load_vision_language(asked.folder)
    assert error.value.hint == "pip install 'mlxport[vlm]'"


def test_four_bits_of_a_config_of_2025_leave_the_tower_alone(asked, tmp_path, capsys):
    source = tmp_path / "source"
    source.mkdir()
    for path in asked.source.iterdir():
        shutil.copyfile(path, source / path.name)
    config = json.loads((asked.source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config_of_2025(config)))
    report = mlxport.convert(source, tmp_path / "made", quantize=4, q_group_size=32)
    assert all(row.relative < 1e-5 for row in report.parity.comparisons)
    assert report.plan.quantized and not any("vision" in path for path in report.plan.quantized)
    assert {"language_model.lm_head", "language_model.model.embed_tokens"} <= report.plan.quantized.keys()


def test_generate_and_chat_name_run(asked, capsys):
    with pytest.raises(SystemExit):
        main(["generate", str(asked.folder), "--prompt", "x"])
    assert 'picture.jpg --prompt "What' in capsys.readouterr().err
