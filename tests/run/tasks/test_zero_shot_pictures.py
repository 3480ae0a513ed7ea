"""Models with a part for texts and one for pictures: verified by part, scored as transformers scores, embedded."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from task_models import align, naflex, siglip
from test_tasks import copied

import mlxport
from mlxport.errors import SourceError, UnsafeError, UnsupportedError
from mlxport.layouts.generated.patched_pictures import resized_positions
from mlxport.run.tasks.picture_inputs import example_pictures

TASK = "zero-shot-image-classification"
TEXTS = ["the cat is on a mat", "paris", "a dog ."]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("pictures")
    for index, picture in enumerate(example_pictures()[:2]):
        picture.save(folder / f"{index}.png")
    return sorted(map(str, folder.iterdir()))


@pytest.fixture(scope="module")
def sigmoid(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, mlxport.ConvertReport]:
    """A SigLIP, what it becomes, and the report."""
    source, folder = tmp_path_factory.mktemp("siglip"), tmp_path_factory.mktemp("converted") / "siglip"
    torch.manual_seed(0)
    siglip(source)
    return source, folder, mlxport.convert(source, folder, quiet=True)


def test_every_part_is_verified_by_itself_and_then_all_together(converted, sigmoid):
    folder = converted(TASK)
    for report in (converted.reports[TASK].parity, sigmoid[2].parity):
        rows = [row.inputs for row in report.comparisons]
        each = [f"{part}, {inputs}" for part in ("text", "image", "score") for inputs in ("example", "other sizes")]
        assert rows == [*each, "all parts"]
        assert all(row.passed and row.relative < 1e-5 for row in report.comparisons)
        assert report.task.task == TASK and not report.task.missing and report.task.error < 1e-5
    weights = mx.load(str(folder / "model.safetensors"))
    assert {name.split(".")[0] for name in weights} == {
        *("text_model", "vision_model", "text_projection", "visual_projection", "logit_scale")
    }
    assert {"text.py", "image.py", "score.py"} <= {file.name for file in folder.iterdir()}


def test_scores_of_padded_texts_are_those_of_transformers(converted, sigmoid, pictures):
    for source, folder in ((converted.source(TASK), converted(TASK)), sigmoid[:2]):
        pictures_of = transformers.AutoImageProcessor.from_pretrained(source, backend="pil")  # torchvision or not
        theirs = transformers.pipeline(TASK, model=str(source), device="cpu", image_processor=pictures_of)
        ours = mlxport.pipeline(folder)
        wanted = theirs(pictures, candidate_labels=TEXTS, hypothesis_template="a {} .")
        got = ours(pictures, text=TEXTS, hypothesis_template="a {} .", batch_size=2)
        for mine, other in zip(got, wanted, strict=True):
            assert [entry["label"] for entry in mine] == [entry["label"] for entry in other]
            assert not ours.compare(mine, other).wrong and ours.compare(mine, other).error < 1e-5
    assert sum(entry["score"] for entry in got[0]) != pytest.approx(1)


@pytest.mark.parametrize("make", [align, naflex])
def test_align_and_pictures_of_any_shape_are_scored_as_transformers_scores_them(make, pictures, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    torch.manual_seed(0)
    make(source)
    report = mlxport.convert(source, tmp_path / "made", quiet=True)
    assert all(row.passed and row.relative < 1e-5 for row in report.parity.comparisons)
    assert not report.parity.task.missing and report.parity.task.error < 1e-5
    pictures_of = transformers.AutoImageProcessor.from_pretrained(source, backend="pil")
    theirs = transformers.pipeline(TASK, model=str(source), device="cpu", image_processor=pictures_of)
    tall = tmp_path / "tall.png"
    Image.open(pictures[0]).resize((40, 200)).save(tall)
    shown = [*pictures, str(tall)]
    ours = mlxport.pipeline(tmp_path / "made")
    wanted = theirs(shown, candidate_labels=TEXTS, hypothesis_template="a {} .")
    for mine, other in zip(ours(shown, text=TEXTS, hypothesis_template="a {} ."), wanted, strict=True):
        assert not ours.compare(mine, other).wrong and ours.compare(mine, other).error < 1e-5


@pytest.mark.parametrize("shapes", [[[3, 4], [5, 2]], [[1, 17], [9, 3]], [[7, 7], [4, 4]]])
def test_positions_are_resized_as_torch_resizes_them(shapes):
    table = torch.randn(7, 7, 5, generator=torch.Generator().manual_seed(0))
    embeddings = transformers.models.siglip2.modeling_siglip2.Siglip2VisionEmbeddings
    wanted = embeddings.resize_positional_embeddings(table, torch.tensor(shapes), 60)
    torch.testing.assert_close(resized_positions(table, torch.tensor(shapes), 60), wanted, atol=1e-6, rtol=0)


def test_parts_give_the_projected_features(converted, sigmoid):
    source, folder, _ = sigmoid
    for theirs, ours in (
        (transformers.CLIPModel.from_pretrained(converted.source(TASK)), mlxport.load(converted(TASK))),
        (transformers.SiglipModel.from_pretrained(source), mlxport.load(folder)),
    ):
        ids = torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0]])
        mask = (ids != 0).long()
        pixels = torch.randn(3, 3, 32, 32)
        with torch.no_grad():
            wanted = theirs.get_text_features(ids, attention_mask=mask).pooler_output
            seen = theirs.get_image_features(pixels).pooler_output
        got = ours.text(input_ids=mx.array(ids.numpy()), attention_mask=mx.array(mask.numpy()))
        assert np.abs(np.array(got) - wanted.numpy()).max() < 1e-5
        assert np.abs(np.array(ours.image(mx.array(pixels.numpy()))) - seen.numpy()).max() < 1e-5


def test_the_command_prints_a_matrix_json_and_vectors(converted, command, pictures, tmp_path):
    folder = converted(TASK)
    code, out, _ = command(folder, "--image", *pictures, "--text", *TEXTS)
    head, *rows = out.splitlines()
    assert code == 0 and len(rows) == 2 and all(text in head for text in TEXTS)
    code, out, _ = command(folder, *pictures, "--text", *TEXTS, "--json")
    found = json.loads(out)
    assert [sum(entry["score"] for entry in row) for row in found] == pytest.approx([1, 1])
    assert [row.endswith(best[0]["label"]) for row, best in zip(rows, found, strict=True)] == [True, True]
    for given, count in ((["--image", *pictures], 2), (["--text", *TEXTS], 3)):
        code, _, err = command(folder, *given, "--output", tmp_path / "v.npy")
        assert code == 0 and "v.npy" in err and np.load(tmp_path / "v.npy").shape == (count, 16)
    code, out, _ = command(folder, "--text", TEXTS[0], "--json")
    assert code == 0 and np.shape(json.loads(out)) == (16,)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "needs a picture"),
        (["--text", "the cat " * 40], "--truncate"),
        (["--text", " "], "empty"),
        (["--image", "nothing.png", "--text", "a"], "no such file"),
        (["nothing.png", "--text", "a", "--hypothesis-template", "a photo"], "has no {}"),
        (["nothing.png", "--text", "a", "--output", "v.npy"], "--image or --text alone"),
    ],
)
def test_bad_input_is_one_clear_error(converted, command, monkeypatch, tmp_path, given, said):
    monkeypatch.chdir(tmp_path)
    code, out, err = command(converted(TASK), *given)
    assert code in (1, 2) and not out and said in err and "hint: " in err and list(tmp_path.iterdir()) == []


def test_code_of_others_does_not_run(converted, tmp_path):
    folder = copied(converted(TASK), tmp_path / "changed")
    (folder / "image.py").write_text((folder / "image.py").read_text() + "\nraise SystemExit\n")
    for use in (mlxport.load, mlxport.pipeline):
        with pytest.raises(UnsafeError, match=r"image\.py"):
            use(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "port_parts": {"../image": {}}}))
    with pytest.raises(SourceError, match="port_parts"):
        mlxport.load(folder)
    with pytest.raises(UnsupportedError, match="code of its own"):
        mlxport.convert(converted(TASK), tmp_path / "again", quiet=True)
