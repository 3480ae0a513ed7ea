"""Which files of a pipeline of diffusers are read, and what is said where one is not there."""

from __future__ import annotations

import pytest

from mlxport.errors import ConfigError, WeightsError
from mlxport.source.pipeline_files import component_files, is_pipeline, pipeline_class, pipeline_side_names

INDEX = {"_class_name": "StableDiffusionPipeline"}
CONFIGS = [f"{name}/config.json" for name in ("text_encoder", "unet", "vae")]
WHOLE = [
    "text_encoder/model.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.bin",
]


def chosen(*names: str) -> dict[str, str]:
    return {item.name: item.file for item in component_files(INDEX, [*CONFIGS, *names], "here")}


def test_each_model_has_its_file():
    assert list(chosen(*WHOLE).values()) == WHOLE


@pytest.mark.parametrize(
    ("beside", "file"),
    [
        ("unet/diffusion_pytorch_model.fp16.safetensors", WHOLE[1]),
        ("unet/diffusion_pytorch_model.bin", WHOLE[1]),
        ("unet/diffusion_pytorch_model.non_ema.safetensors", WHOLE[1]),
        ("unet/diffusion_pytorch_model.safetensors.index.json", "unet/diffusion_pytorch_model.safetensors.index.json"),
    ],
)
def test_whole_numbers_and_an_index_come_first(beside: str, file: str):
    assert chosen(*WHOLE, beside)["unet"] == file


def test_a_variant_is_taken_where_there_is_nothing_else():
    names = ["unet/diffusion_pytorch_model.fp16.bin", "unet/diffusion_pytorch_model.fp16.safetensors"]
    found = {item.name: item for item in component_files(INDEX, [*CONFIGS, WHOLE[0], WHOLE[2], *names], "here")}
    assert found["unet"].file == names[1] and found["unet"].variant == "fp16" and not found["vae"].variant


def test_a_model_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match="the pipeline has no vae") as error:
        component_files(INDEX, [*CONFIGS[:2], *WHOLE], "here")
    assert "--include 'vae/*'" in error.value.hint
    with pytest.raises(WeightsError, match="unet has no weights"):
        chosen(WHOLE[0], WHOLE[2])


def test_what_a_pipeline_is():
    assert is_pipeline(["model_index.json", "unet/config.json"]) and not is_pipeline(
        ["model_index.json", "config.json"]
    )
    assert pipeline_class({"_class_name": "StableDiffusionImg2ImgPipeline"}) == "StableDiffusionPipeline"
    assert pipeline_class({"_class_name": "AudioLDM2Pipeline"}) is None
    names = [
        "LICENSE.md",
        "tokenizer/vocab.json",
        "tokenizer_2/merges.txt",
        "safety_checker/model.safetensors",
        "a.png",
    ]
    assert pipeline_side_names(names) == ["LICENSE.md", "tokenizer/vocab.json", "tokenizer_2/merges.txt"]
