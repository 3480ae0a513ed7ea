from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlxport.errors import MlxportError, SourceError, UnsafeError, UnsupportedError, WeightsError
from mlxport.source import open_checkpoint, read_rows
from mlxport.source.torch_file import read_torch_file

torch = pytest.importorskip("torch")


def as_bytes(tensor: Any) -> bytes:
    return (
        bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()) if tensor.numel() else b""
    )


def state_dict() -> dict[str, Any]:
    torch.manual_seed(0)
    base = torch.randn(6, 4)
    return {
        "f32": base,
        "tied": base,
        "transposed": base.T,
        "sliced": base[1:5:2, 1:],
        "permuted": torch.randn(4, 6, 5).permute(2, 0, 1),
        "from the middle": torch.arange(10)[3:7],
        "f64": torch.randn(3, dtype=torch.float64),
        "f16": torch.randn(3).half(),
        "bf16": torch.randn(3, 2).bfloat16(),
        "fp8": torch.randn(3).to(torch.float8_e4m3fn),
        "int": torch.tensor([[-1, 2]], dtype=torch.int32),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": s, "optimizer": {"lr": 0.1}},
        lambda s: {"model": s, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}, "best_loss": torch.tensor(1.0)},
        lambda s: {"net": s, "optim_states": {"exp_avg": torch.ones(2)}},
        lambda s: {"checkpoint": {"params_ema": s, "epoch": 3}},
    ],
)
def test_every_tensor_reads_as_torch_has_it(tmp_path: Path, wrap: Callable[[Any], Any]) -> None:
    weights = state_dict()
    torch.save(wrap(weights), tmp_path / "pytorch_model.bin")
    refs, problems = read_torch_file(tmp_path / "pytorch_model.bin")
    assert refs.keys() == weights.keys()
    assert bool(problems) == ("f32" not in wrap(weights))
    for name, tensor in weights.items():
        assert refs[name].shape == tuple(tensor.shape)
        assert read_rows(refs[name]).tobytes() == as_bytes(tensor), name
        for row in range(len(tensor) if tensor.ndim else 0):
            assert read_rows(refs[name], row, row + 1).tobytes() == as_bytes(tensor[row]), name


def test_what_is_not_a_tensor_is_told(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2), "step": 3, "names": ["x"]}, tmp_path / "model.pt")
    refs, problems = read_torch_file(tmp_path / "model.pt")
    assert [*refs] == ["a"]
    assert [problem.split()[1] for problem in problems] == ["step", "names"]


def test_strided_rows_of_a_large_tensor_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlxport.source.row_reader._GATHER_LIMIT", 1 << 14)
    tensor = torch.arange(300 * 200).reshape(300, 200).T
    torch.save({"a": tensor}, tmp_path / "model.pt")
    ref = read_torch_file(tmp_path / "model.pt")[0]["a"]
    assert ref.strides == (1, 200)
    assert read_rows(ref).tobytes() == as_bytes(tensor)
    assert read_rows(ref, 7, 12).tobytes() == as_bytes(tensor[7:12])


class Payload:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


class EvalPayload(Payload):
    def __reduce__(self) -> Any:
        return eval, (f"__import__('os').system({self.command!r})",)


@pytest.mark.parametrize("payload", [Payload, EvalPayload])
@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("archive", [True, False], ids=["zip", "bare pickle"])
def test_a_pickle_with_code_is_refused_and_not_executed(
    single: Path, tmp_path: Path, payload: type[Payload], protocol: int, archive: bool
) -> None:
    witness = tmp_path / "executed"
    path = single / "pytorch_model.bin"
    (single / "model.safetensors").unlink()
    content = {"model.embed_tokens.weight": torch.ones(2), "x": payload(f"touch {witness}")}
    if archive:
        torch.save(content, path, pickle_protocol=protocol)
    else:
        path.write_bytes(pickle.dumps(payload(f"touch {witness}"), protocol=protocol))
    with pytest.raises(UnsafeError) as caught:
        open_checkpoint(single)
    assert not witness.exists()
    assert str(path) in caught.value.message
    assert "not executed" in caught.value.message
    assert "safetensors" in caught.value.hint
    # The payload is a real one: an unpickler that trusts it does run it.
    if not archive:
        pickle.loads(path.read_bytes())
        assert witness.exists()


def legacy(path: Path) -> None:
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)


def bare_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"a": 1}))


def zip_of_nothing(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/b", b"")


def script(path: Path) -> None:
    class Tiny(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            return x + 1

    torch.jit.trace(Tiny(), torch.ones(2)).save(str(path))


def truncated(path: Path) -> None:
    torch.save({"a": torch.ones(2000)}, path)
    os.truncate(path, path.stat().st_size // 2)


def rewritten(change: Callable[[str, bytes], tuple[bytes, int] | None]) -> Callable[[Path], None]:
    """A file as torch wrote it, with records changed, dropped or compressed."""

    def write(path: Path) -> None:
        torch.save({"a": torch.ones(2000)}, path)
        with zipfile.ZipFile(path) as archive:
            records = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in records.items():
                changed = change(name, data)
                if changed is not None:
                    archive.writestr(name, changed[0], compress_type=changed[1])

    return write


def saved(content: Any) -> Callable[[Path], None]:
    return lambda path: torch.save(content() if callable(content) else content, path)


STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
BROKEN: list[tuple[str, Callable[[Path], None], type[MlxportError], str]] = [
    ("empty", lambda path: path.write_bytes(b"") and None, WeightsError, "is empty"),
    ("text", lambda path: path.write_bytes(b"hello") and None, WeightsError, "not a torch weights file"),
    (
        "LFS pointer",
        lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n") and None,
        WeightsError,
        "git-LFS pointer",
    ),
    ("legacy", legacy, UnsupportedError, "legacy format"),
    ("bare pickle", bare_pickle, UnsafeError, "bare pickle"),
    ("truncated", truncated, WeightsError, "truncated"),
    ("zip of nothing", zip_of_nothing, WeightsError, "without data.pkl"),
    (
        "storage compressed",
        rewritten(lambda name, data: (data, DEFLATED if "/data/" in name else STORED)),
        WeightsError,
        "compressed",
    ),
    (
        "storage too short",
        rewritten(lambda name, data: (data[:100] if "/data/" in name else data, STORED)),
        WeightsError,
        "reaches byte 8000 of a storage of 100",
    ),
    ("storage missing", rewritten(lambda name, data: None if "/data/" in name else (data, STORED)), WeightsError, ""),
    ("no pickle", rewritten(lambda name, data: None if "pkl" in name else (data, STORED)), WeightsError, "data.pkl"),
    (
        "half a pickle",
        rewritten(lambda name, data: (data[: len(data) // 2] if "pkl" in name else data, STORED)),
        MlxportError,
        "",
    ),
    (
        "big-endian",
        rewritten(lambda name, data: (b"big" if "byteorder" in name else data, STORED)),
        UnsupportedError,
        "big-endian",
    ),
    (
        "pickle that is a bomb",
        rewritten(lambda name, data: (bytes(300_000_000), DEFLATED) if "pkl" in name else (data, STORED)),
        WeightsError,
        "300000000 bytes",
    ),
    ("a list", saved([1]), WeightsError, "holds a list"),
    ("a tensor", saved(lambda: torch.ones(2)), WeightsError, "holds a Tensor"),
    ("no tensors", saved({"a": 1}), WeightsError, "no tensors"),
    ("numbers as names", saved(lambda: {3: torch.ones(2)}), WeightsError, "'3' is not a tensor's name"),
    (
        "two state dicts",
        saved(lambda: {"model": {"a": torch.ones(2)}, "state_dict": {"a": torch.ones(2)}}),
        WeightsError,
        "more than one state dict",
    ),
    (
        "tensors beside a state dict",
        saved(lambda: {"model": {"a": torch.ones(2)}, "scale": torch.ones(2)}),
        WeightsError,
        "more than one state dict",
    ),
    ("sparse", saved(lambda: {"a": torch.eye(3).to_sparse()}), MlxportError, ""),
    ("repeated elements", saved(lambda: {"a": torch.ones(1).expand(1000)}), WeightsError, "repeats elements"),
    ("complex128", saved(lambda: {"a": torch.ones(2, dtype=torch.complex128)}), WeightsError, "'a' is torch.strided"),
    ("a whole module", saved(lambda: torch.nn.Linear(2, 2)), UnsafeError, "not executed"),
]


@pytest.mark.parametrize(("write", "kind", "message"), [c[1:] for c in BROKEN], ids=[c[0] for c in BROKEN])
def test_broken_file_is_named_with_a_remedy(
    tmp_path: Path, write: Callable[[Path], None], kind: type[MlxportError], message: str
) -> None:
    path = tmp_path / "pytorch_model.bin"
    write(path)
    with pytest.raises(kind) as caught:
        read_torch_file(path)
    assert message in caught.value.message
    assert str(path) in caught.value.message
    assert caught.value.hint


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_a_program(tmp_path: Path) -> None:
    script(tmp_path / "model.pt")
    with pytest.raises(UnsupportedError, match="TorchScript"):
        read_torch_file(tmp_path / "model.pt")


@pytest.mark.parametrize("index", [True, False], ids=["index", "names"])
def test_shards(sharded: Path, index: bool) -> None:
    weights = {f"model.layers.{layer}.a": torch.full((8, 2), float(layer)) for layer in range(2)}
    for path in sharded.glob("model*"):
        path.unlink()
    weight_map = {}
    for number, (name, tensor) in enumerate(weights.items(), 1):
        weight_map[name] = f"pytorch_model-{number:05d}-of-00002.bin"
        torch.save({name: tensor}, sharded / weight_map[name])
    if index:
        (sharded / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    torch.save({"lr": 1}, sharded / "training_args.bin")
    checkpoint = open_checkpoint(sharded)
    assert [path.name for path in checkpoint.weight_files] == [*weight_map.values()]
    for name, tensor in weights.items():
        assert read_rows(checkpoint.tensors[name]).tobytes() == as_bytes(tensor)
    (sharded / weight_map["model.layers.1.a"]).unlink()
    with pytest.raises(WeightsError, match=r"pytorch_model-00002-of-00002\.bin.* is missing"):
        open_checkpoint(sharded)


def test_without_torch_it_says_what_to_install(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    program = (
        "import sys\n"
        "sys.modules['torch'] = None\n"  # as if it were not installed
        "from mlxport.errors import SourceError\n"
        "from mlxport.source.torch_file import read_torch_file\n"
        "from pathlib import Path\n"
        "try:\n"
        "    read_torch_file(Path(sys.argv[1]))\n"
        "except SourceError as error:\n"
        "    print(error.hint)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "pytorch_model.bin")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.strip() == 'pip install "mlxport[torch]"', done.stderr
    assert SourceError.exit_code == 1
