"""The layout of Whisper for mlx-whisper, as data; what it says is imported when it is asked."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mlxport.errors import ConfigError
from mlxport.layouts.base import Layout, LayoutOptions, Refusal, captured_only, measured_on_text
from mlxport.layouts.mlx_whisper.dimensions import why_not

if TYPE_CHECKING:
    from mlxport.layouts.conversion import Conversion
    from mlxport.types import Checkpoint

__all__ = ["MLX_WHISPER"]

_USAGE = """\
## Use

```bash
pip install 'mlxport[whisper,audio]'
mlxport run PATH talk.flac --format srt
```

`--language`, `--task translate`, `--word-timestamps` and `--format txt|srt|vtt|json` are options of `mlxport run`. With
mlx-whisper alone (files are read by ffmpeg, arrays of 16 kHz samples are not):

```python
import mlx_whisper

print(mlx_whisper.transcribe("talk.flac", path_or_hf_repo="PATH")["text"])
```

`PATH` is this folder, or the repository that holds it. The exact options, versions and hashes of source and output are
in `mlxport.json`."""

_FOR_TEXTS = "for models that read texts"


def _claims(config: Mapping[str, Any], tensors: Collection[str] = ()) -> bool:
    """Whether mlx-whisper computes what a config describes."""
    try:
        return config.get("model_type") == "whisper" and not why_not(config)
    except ConfigError:
        return True  # what is wrong with it is said when it is opened


def _check(config: Mapping[str, Any], where: str) -> None:
    from mlxport.layouts.mlx_whisper.opening import check_config

    check_config(config, where)


def _opens(checkpoint: Checkpoint, options: LayoutOptions) -> Conversion:
    from mlxport.layouts.mlx_whisper.opening import open_whisper

    return replace(open_whisper(checkpoint, options.dtype).conversion(options.quant), model=None)


def _foresees(checkpoint: Checkpoint, options: LayoutOptions) -> Conversion:
    from mlxport.layouts.mlx_whisper.opening import open_whisper

    return open_whisper(checkpoint, options.dtype, headers_only=True).conversion(options.quant)


MLX_WHISPER = Layout(
    name="mlx-whisper",
    claims=_claims,
    opens=_opens,
    foresees=_foresees,
    check=_check,
    glance=_claims,
    refuses=(
        captured_only("mlx-whisper"),
        Refusal(("distill", "report"), f"{{given}}: {_FOR_TEXTS}", "leave it out"),
        Refusal(("kv_bits",), f"--kv-bits: {_FOR_TEXTS}", "leave it out"),
        *measured_on_text(_FOR_TEXTS),
    ),
    weights="weights",
    one_file=True,
    tokenizer=False,
    task="automatic-speech-recognition",
    usage=_USAGE,
    verification="speech",
    wrote=lambda config: "n_audio_ctx" in config,
    not_generating=(
        "a model that hears: it writes what is said in a recording, not what follows a prompt",
        "give it a recording: mlxport run PATH talk.flac",
    ),
)
