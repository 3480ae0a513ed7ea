"""What the stages hand over: frozen dataclasses, no behaviour beyond arithmetic on their own fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxport.model_config import ModelConfig

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# safetensors dtype name -> bits per element. https://github.com/huggingface/safetensors (format section)
DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
}


@dataclass(frozen=True, slots=True)
class TensorRef:
    """Where one tensor of a checkpoint lies, as a rule on disk; nothing is read.

    Attributes:
        name: Key in the checkpoint.
        dtype: safetensors dtype name, a key of ``DTYPE_BITS``.
        shape: Dimensions, row-major order.
        path: File that holds the bytes.
        offset: Absolute byte offset of the first element in ``path``.
        strides: Element strides where the tensor is not contiguous (torch files only), else None.
        held: The bytes themselves, flat uint8, where they lie in memory and in no file.
        made: What makes the bytes of rows [start, stop), where those in the file are in another form.
        key: Its name in the file, where the checkpoint has another for it; else empty.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    strides: tuple[int, ...] | None = None
    held: npt.NDArray[np.uint8] | None = field(default=None, compare=False, repr=False)
    made: Callable[[int, int], npt.NDArray[np.uint8]] | None = field(default=None, compare=False, repr=False)
    key: str = ""

    @property
    def name_in_file(self) -> str:
        """What the file calls it."""
        return self.key or self.name

    @property
    def as_stored(self) -> bool:
        """Whether its elements lie one after the other, as they are read."""
        return self.strides is None and self.made is None

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements, contiguous."""
        return self.size * DTYPE_BITS[self.dtype] // 8


@dataclass(frozen=True, slots=True)
class FileState:
    """What a file system says of a file, and what changes whenever its content does.

    Attributes:
        nbytes: Size.
        modified: When its content was written last, in nanoseconds; whoever writes it may set this.
        changed: When anything of it changed last, in nanoseconds; nobody can set this.
        identity: Of the file itself: another file of the same name has another one.
    """

    nbytes: int
    modified: int
    changed: int
    identity: tuple[int, int]


@dataclass(frozen=True)
class Checkpoint:
    """An opened source: config and tensor references; weights stay where they are.

    Attributes:
        root: Local folder that holds the files (the snapshot folder for a hub repository); of tensors in memory a path
            that no file can be under.
        config: Parsed config.json.
        tensors: Name to reference, in the order of the index (or of the file).
        weight_files: Files that hold the tensors, in order, absolute paths.
        side_files: Everything else worth carrying (tokenizer, processor, chat template, generation config), absolute.
        repo_id: Hub repository id, or None for a folder.
        revision: Commit hash of the hub snapshot; of tensors in memory what ``content_hash`` gives; or None.
        problems: What is wrong but does not stop a conversion (shown by ``inspect``).
        trust_remote_code: Whether code of the checkpoint may run (its tokenizer, its model).
        states: Of the files that it consists of, as they were before anything was read from them.
        module: Class of the PyTorch module whose tensors these are, where they lie in memory; else empty.
        text_part: Whether config and tensors are those of the text part alone of the model that the files are of.
        file: The single file that the checkpoint is, where ``root`` is a folder that was made of it; else None.
        keeps: What removes such a folder once nobody has the checkpoint any more.
    """

    root: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorRef]
    weight_files: tuple[Path, ...]
    side_files: tuple[Path, ...] = ()
    repo_id: str | None = None
    revision: str | None = None
    problems: tuple[str, ...] = ()
    trust_remote_code: bool = False
    states: Mapping[Path, FileState] = field(default_factory=dict, repr=False)
    module: str = ""
    text_part: bool = False
    file: Path | None = None
    keeps: object = field(default=None, compare=False, repr=False)

    @cached_property
    def model_config(self) -> ModelConfig:
        """What the config says of the language model; questions about configs are asked here."""
        return ModelConfig(self.config)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(ref.nbytes for ref in self.tensors.values())

    @property
    def name(self) -> str:
        """How the source is called in messages and in the record."""
        return self.repo_id or self.module or self.place.name

    @property
    def location(self) -> str:
        """Where the source is, for errors: the repository, the module's class, or the whole path of folder or file."""
        return self.repo_id or self.module or str(self.place)

    @property
    def place(self) -> Path:
        """What the user has of it: the folder, or the single file."""
        return self.file or self.root

    @property
    def weights_root(self) -> Path:
        """The folder that the weight files are in."""
        return self.root if self.file is None else self.file.parent


@dataclass(frozen=True, slots=True)
class QuantSpec:
    """How one module's weight is quantized: the same three fields that mlx-lm writes into config.json."""

    mode: str
    bits: int
    group_size: int

    def as_config(self) -> dict[str, int | str]:
        """The block that mlx-lm reads."""
        return {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}


@dataclass(frozen=True, slots=True)
class OutTensor:
    """One tensor of the output.

    Attributes:
        name: Key in the output file.
        dtype: safetensors dtype name.
        shape: Dimensions.
        source: Key of the program output that it is computed from (equal to ``name`` unless quantized).
        part: ``""`` for the value itself; ``"weight"``, ``"scales"`` or ``"biases"`` of a quantized triple.
        quant: The quantization of ``source``, or None.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: str
    part: str = ""
    quant: QuantSpec | None = None

    @property
    def nbytes(self) -> int:
        """Bytes in the output file."""
        return prod(self.shape) * DTYPE_BITS[self.dtype] // 8


@dataclass(frozen=True)
class Shard:
    """One output file with its tensors, in file order."""

    filename: str
    tensors: tuple[OutTensor, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors, without the header."""
        return sum(tensor.nbytes for tensor in self.tensors)


@dataclass(frozen=True, slots=True)
class CalibrationPlan:
    """What calibrating will take.

    Attributes:
        text: ``default``, or the file as the user gave it.
        sha256: Of the text.
        tokens: That the model will read.
        sequences: That they are cut into.
        seconds: Estimate of the time, on this machine.
        peak_bytes: Estimate of the peak resident memory.
    """

    text: str
    sha256: str
    tokens: int
    sequences: int
    seconds: float
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class ModelPart:
    """A part of a model beside its language model: a tower of it, or what connects the two.

    Attributes:
        name: Path of its module in the checkpoint.
        tensors: Number of tensors.
        nbytes: Their bytes, as stored.
        declared: Where config.json describes it; empty where it does not.
    """

    name: str
    tensors: int
    nbytes: int
    declared: str = ""


@dataclass(frozen=True)
class Plan:
    """Everything that will be written, known before a byte of weights is read.

    Attributes:
        shards: Output files.
        dtype: Name of the floating dtype of what is not quantized (``bfloat16`` …).
        parameters: Number of parameters, counted before quantization.
        quantized: Module path to its quantization.
        kept: Module path to the reason why it is not quantized (only when quantization was asked for).
        peak_bytes: Estimate of the peak resident memory of the conversion.
        dropped: Source tensors that the target does not use.
        left_out: The parts that those make up, of a model of which the output is the text model alone.
        calibration: What calibrating takes, None without it.
    """

    shards: tuple[Shard, ...]
    dtype: str
    parameters: int
    quantized: Mapping[str, QuantSpec] = field(default_factory=dict)
    kept: Mapping[str, str] = field(default_factory=dict)
    peak_bytes: int = 0
    dropped: tuple[str, ...] = ()
    left_out: tuple[ModelPart, ...] = ()
    calibration: CalibrationPlan | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all weights that will be written."""
        return sum(shard.nbytes for shard in self.shards)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits divided by parameters."""
        return self.nbytes * 8 / max(self.parameters, 1)
