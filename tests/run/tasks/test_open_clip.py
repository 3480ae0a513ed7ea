"""Folders of OpenCLIP: converted as transformers' CLIP, compared with the published formula in plain torch."""

from __future__ import annotations

import json

import mlx.core as mx
import numpy as np
import pytest
import torch
import transformers

import mlxport
from mlxport.errors import ConfigError, UnsupportedError
from mlxport.run.tasks.picture_inputs import example_pictures
from mlxport.source.open_clip_config import clip_config, picture_processor_of
from open_clip_models import PICTURES, OpenClip, open_clip_config, open_clip_folder

TASK = "zero-shot-image-classification"


@pytest.mark.parametrize(
    "how", [{}, {"binary": True, "inside": "text.", "quick_gelu": True, "text_cfg": {"hf_tokenizer_name": "none"}}]
)
def test_both_parts_and_scores_are_those_of_the_published_formula(tmp_path, how):
    theirs = open_clip_folder(tmp_path / "model", **how)
    mode = "layerwise" if how else "full"
    report = mlxport.convert(tmp_path / "model", tmp_path / "out", quiet=True, verify=mode)
    assert (report.layout, report.parity.passed, report.parity.task.task) == ("generated-parts", True, TASK)
    assert any("read where it is used" in note for note in report.parity.notes) is bool(how)
    assert mlxport.verify(tmp_path / "out", against=tmp_path / "model", mode=mode).passed
    assert report.parity.task.missing == "" and report.parity.task.error < 1e-5
    ours, generator = mlxport.load(tmp_path / "out"), torch.Generator().manual_seed(0)
    ids = torch.randint(0, 40, (3, 9), generator=generator)
    pixels = torch.randn(2, 3, 32, 32, generator=generator)
    with torch.no_grad():
        text, image = theirs.encode_text(ids), theirs.visual(pixels)
        score = torch.nn.functional.cosine_similarity(image[:, None], text[None], dim=-1) * theirs.logit_scale.exp()
    mask = mx.ones(ids.shape, mx.int64)
    got = ours.text(input_ids=mx.array(ids.numpy()), attention_mask=mask), ours.image(mx.array(pixels.numpy()))
    for mine, wanted in zip((*got, ours.score(got[1], got[0])), (text, image, score), strict=True):
        assert np.abs(np.array(mine) - wanted.numpy()).max() < 1e-5 * wanted.abs().max()


def test_the_formula_is_that_of_open_clip(tmp_path):
    open_clip = pytest.importorskip("open_clip")
    for quick in (False, True):
        given = open_clip_config(quick_gelu=quick)
        torch.manual_seed(0)
        ours = OpenClip(given).eval()
        theirs = open_clip.CLIP(**given).eval()
        theirs.load_state_dict(ours.state_dict())
        ids, pixels = torch.randint(0, 40, (3, 20)), torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            assert torch.allclose(theirs.encode_text(ids), ours.encode_text(ids), atol=1e-4)
            assert torch.allclose(theirs.encode_image(pixels), ours.visual(pixels), atol=1e-4)


def test_inspect_says_what_it_is_and_pictures_are_prepared_as_it_says(tmp_path):
    open_clip_folder(tmp_path / "model")
    found = mlxport.inspect(tmp_path / "model")
    assert (found.architecture, found.model_type, found.task) == ("OpenCLIP", "clip", TASK)
    made = picture_processor_of(tmp_path / "model")
    assert made["size"] == {"shortest_edge": 32} and made["image_mean"] == PICTURES["mean"] and made["resample"] == 3


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"multimodal_cfg": {"width": 24}}, "multimodal_cfg: transformers' CLIP has no such part"),
        ({"init_logit_bias": -10}, "init_logit_bias: transformers' CLIP has no such part"),
        ({"vision_cfg": {"timm_model_name": "vit_base"}}, "vision_cfg: timm_model_name is 'vit_base'"),
        ({"vision_cfg": {"layers": [3, 4, 6, 3]}}, "vision_cfg: layers is '\\[3, 4, 6, 3\\]'"),
        ({"vision_cfg": {"attentional_pool": True}}, "vision_cfg: attentional_pool is 'True'"),
        ({"text_cfg": {"hf_model_name": "roberta-base"}}, "text_cfg: hf_model_name is 'roberta-base'"),
        ({"text_cfg": {"no_causal_mask": True}}, "text_cfg: no_causal_mask is 'True'"),
        ({"text_cfg": {"pool_type": "last"}}, "text_cfg: pool_type is 'last'"),
    ],
)
def test_what_clip_has_not_is_refused_by_name(fields, said):
    with pytest.raises(UnsupportedError, match=f"config.json: {said}"):
        clip_config({"model_cfg": open_clip_config(**fields)}, "config.json")


@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_pictures_are_those_of_open_clip(tmp_path, mode):
    transform = pytest.importorskip("open_clip.transform")
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": open_clip_config(), "preprocess_cfg": {**PICTURES, "resize_mode": mode}})
    )
    ours = transformers.CLIPImageProcessorPil(**picture_processor_of(tmp_path))
    settings = transform.PreprocessCfg(size=32, **{**PICTURES, "resize_mode": mode})
    theirs = transform.image_transform_v2(settings, is_train=False)
    # Where an odd number of rows is cut off, transformers leaves the odd one at the end, torchvision at either.
    for picture in example_pictures()[: 2 if mode == "shortest" else 3]:
        assert np.abs(ours(picture, return_tensors="np")["pixel_values"][0] - theirs(picture).numpy()).max() < 1e-5


def test_another_way_to_prepare_pictures_is_refused(tmp_path):
    pictures = {**PICTURES, "resize_mode": "longest"}
    given = {"model_cfg": open_clip_config(), "preprocess_cfg": pictures}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(given))
    with pytest.raises(UnsupportedError, match="resize_mode 'longest'"):
        picture_processor_of(tmp_path)


def test_a_config_without_sizes_is_one_clear_error():
    with pytest.raises(ConfigError, match="model_cfg is 'None', expected an object"):
        clip_config({}, "config.json")
    with pytest.raises(ConfigError, match="width is 'wide', expected a whole number"):
        clip_config({"model_cfg": open_clip_config(vision_cfg={"width": "wide"})}, "config.json")
