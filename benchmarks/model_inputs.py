"""Example inputs for tiny models, from the signature of forward and the config."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any

from model_fields import IMAGE, LENGTH, VOCAB

SAMPLES = 2048  # of sound
FRAMES = 1920  # of sound, where a model takes whole frames
COMBINATIONS = 24  # of shapes that are tried for one set of inputs
Makers = dict[str, list[Callable[[], Any]]]  # of each input: the shapes that models take it in, the likeliest first


def inputs(model: Any) -> Iterator[dict[str, Any]]:
    """Inputs to try, the most telling first."""
    import torch

    torch.manual_seed(1)
    parameters = inspect.signature(model.forward).parameters
    extra = {"use_cache": False} if "use_cache" in parameters else {}
    if "return_loss" in parameters:
        extra["return_loss"] = False
    makers = _makers(model.config, model, parameters)
    needed, sets = _sets(model, parameters)
    seen: list[set[str]] = []
    for wanted in sets:
        known = {name for name in wanted if name in parameters}
        if known and known not in seen and set(needed) <= known <= makers.keys():
            seen.append(known)
    for changed in (0, 1, 2):  # all in their likeliest shapes first, then with others for one or two of them
        for wanted in seen[: (None, 12, 6)[changed]]:
            for shapes in itertools.islice(_shapes(makers, wanted, changed), COMBINATIONS):
                yield {**{name: make() for name, make in shapes.items()}, **extra}
    if missing := [name for name in needed if name not in makers]:
        raise ValueError(f"no maker for the inputs {missing}")


def _shapes(makers: Makers, wanted: set[str], changed: int) -> Iterator[dict[str, Callable[[], Any]]]:
    """A shape for each wanted input, of which ``changed`` are not in their likeliest."""
    usual = {name: makers[name][0] for name in wanted}
    for names in itertools.combinations([name for name in makers if name in wanted], changed):
        for others in itertools.product(*(makers[name][1:] for name in names)):
            yield {**usual, **dict(zip(names, others, strict=True))}


def _sets(model: Any, parameters: Any) -> tuple[list[str], list[list[str]]]:
    """What a model cannot do without, and sets of inputs to try."""
    needed = [
        name for name, p in parameters.items()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]  # fmt: skip
    main = model.main_input_name
    main = [main] if isinstance(main, str) else list(main)[:1]
    drawn = [name for name in ("noise",) if name in parameters]  # inside, if it is not given: not the same twice
    names = list(dict.fromkeys([*(name for name in main if name in parameters), *needed, *drawn]))
    if "input_ids" in parameters and not names:
        names = ["input_ids"]
    optional = ["attention_mask", "decoder_input_ids", "pixel_values", "input_values", "input_features",
                "token_type_ids", "bbox", "pixel_mask"]  # fmt: skip
    tried: list[list[str]] = []
    if "decoder_input_ids" in parameters:
        tried.append([*names, "attention_mask", "decoder_input_ids"])
    if "input_ids" in parameters:
        tried.append(["input_ids", "attention_mask", *names])
        if "pixel_values" in parameters:
            tried.insert(0, ["input_ids", "attention_mask", "pixel_values", *names])
    tried += [names, [*names, "decoder_input_ids"], [*names, *optional]]
    tried += [["pixel_values"], ["input_values"], ["input_features"], ["input_ids", "bbox", "pixel_values"]]
    beside = ("input_features_mask", "feature_attention_mask", "padding_mask", "attention_mask", "input_ids",
              "encoder_hidden_states", "visual_pos", "target_sizes")  # fmt: skip
    for count in (1, 2):
        tried += [[*names, *more] for more in itertools.combinations(beside, count)]
    images = ["pixel_values", "pixel_attention_mask", "image_attention_mask", "spatial_shapes"]
    tried += [[*names, "input_ids", "attention_mask", *images], ["input_ids", "decoder_input_ids"]]
    tried += [["input_ids", "visual_feats", "visual_pos"], ["states", "actions", "rewards", "returns_to_go",
              "timesteps", "attention_mask"], ["flattened_patches", "decoder_input_ids"],
              [*names, "future_values", "future_time_features"]]  # fmt: skip
    return needed, tried


def _first(config: Any, *names: str, default: Any = None) -> Any:
    parts = [config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", {}))]
    for part in parts:
        for name in names:
            value = getattr(part, name, None)
            if value is not None:
                return value
    return default


def _makers(config: Any, model: Any, parameters: Any) -> Makers:
    makers: Makers = {
        **_text(config),
        **_images(config, model),
        **_sound(config, model),
        **_series(config),
    }
    if {"grid_thw", "image_grid_thw"} & parameters.keys():
        makers.update(_patches(config, parameters))
    return makers


def _text(config: Any) -> Makers:
    import torch

    vocab = min(_first(config, "vocab_size", default=VOCAB), VOCAB)
    hidden = _first(config, "hidden_size", "d_model", default=32)
    books = _first(config, "num_codebooks", default=4)
    ids = torch.randint(5, max(vocab - 24, 6), (2, LENGTH))
    crossed = _first(config, "encoder_hidden_size", default=hidden)

    def integers(*shape: int, high: int = max(vocab - 24, 6)) -> Callable[[], Any]:
        return lambda: torch.randint(min(5, high - 1), high, shape)

    def ones(*shape: int) -> Callable[[], Any]:
        return lambda: torch.ones(shape, dtype=torch.long)

    def normal(*shape: int) -> Callable[[], Any]:
        return lambda: torch.randn(shape)

    return {
        "input_ids": [lambda: ids.clone(), integers(2 * books, LENGTH), integers(2, LENGTH, books),
                      integers(2, LENGTH, books + 1)],
        "decoder_input_ids": [integers(2, 7), integers(2 * books, 7)],
        "qformer_input_ids": [integers(2, LENGTH)],
        "task_inputs": [integers(2, _first(config, "task_seq_len", default=77))],
        "attention_mask": [ones(2, LENGTH), ones(2, FRAMES)],
        "qformer_attention_mask": [ones(2, LENGTH)],
        "token_type_ids": [lambda: torch.zeros(2, LENGTH, dtype=torch.long)],
        "bbox": [lambda: torch.tensor([1, 2, 20, 30]).expand(2, LENGTH, 4).contiguous()],
        "inputs_embeds": [normal(2, LENGTH, hidden)],
        "hidden_states": [normal(2, LENGTH, hidden)],
        "query_embeds": [normal(2, LENGTH, hidden)],
        "noise_embeds": [normal(2, LENGTH, hidden)],
        "context_hidden_states": [normal(2, LENGTH, hidden)],
        "encoder_hidden_states": [normal(2, 6, crossed)],
        "visual_feats": [normal(2, 6, _first(config, "visual_feat_dim", default=hidden))],
        "visual_pos": [normal(2, 6, _first(config, "visual_pos_dim", default=4))],
        "inputs": [normal(2, LENGTH, _first(config, "d_model", default=hidden)), integers(2, LENGTH)],
    }  # fmt: skip


def _images(config: Any, model: Any) -> Makers:
    import torch

    size = _first(config, "image_size", default=IMAGE)
    height, width = (size, size) if isinstance(size, int) else tuple(size)[-2:]
    channels = _first(config, "num_channels", "in_channels", "in_chans", default=3)
    channels = channels if isinstance(channels, int) else 3
    frames = _first(config, "num_frames", default=4)
    patch = _first(config, "patch_size", default=4)
    patch = patch if isinstance(patch, int) else patch[-1]
    video = "video" in type(model).__name__.lower() or any(
        word in type(model).__name__ for word in ("VideoMAE", "TimeSformer", "Vivit", "Timesformer", "VJEPA", "XCLIP")
    )

    def normal(*shape: int) -> Callable[[], Any]:
        return lambda: torch.randn(shape)

    def ones(*shape: int) -> Callable[[], Any]:
        return lambda: torch.ones(shape, dtype=torch.long)

    clip, image = normal(2, frames, channels, height, width), normal(2, channels, height, width)
    grid = 4  # patches to a side, of images that are given as patches
    return {
        "pixel_values": [
            clip if video else image, image if video else clip, normal(2, 1, channels, height, width),
            normal(2, 2, channels, height, width), normal(2, channels, 48, 320), normal(2, channels, 256, 256),
            normal(2, grid * grid, channels * patch * patch), normal(grid * grid, channels * patch * patch),
            normal(2, channels, patch, grid * grid * patch),
        ],
        "pixel_values_videos": [clip],
        "pixel_mask": [ones(2, height, width)],
        "pixel_attention_mask": [ones(2, grid * grid), ones(2, 1, height, width), ones(2, 1)],
        "image_attention_mask": [ones(2, LENGTH, 1)],
        "spatial_shapes": [lambda: torch.tensor([[grid, grid]] * 2)],
        "target_sizes": [lambda: torch.tensor([[grid, grid]] * 2)],
        "pixel_position_ids": [
            lambda: torch.stack(torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij"), -1)
            .reshape(1, -1, 2).expand(2, -1, -1).contiguous()
        ],
        "flattened_patches": [lambda: torch.cat([
            torch.arange(1, 9).float().expand(2, 8)[..., None].expand(2, 8, 2),
            torch.randn(2, 8, channels * patch * patch),
        ], -1)],
        "noise": [lambda: torch.rand(2, (height // patch) * (width // patch))],
    }  # fmt: skip


def _patches(config: Any, parameters: Any) -> Makers:
    """Images as the patches of a grid: those of the Qwen-VL family and what follows it."""
    import torch

    patch = _first(config, "patch_size", default=14)
    merge = _first(config, "spatial_merge_size", "merge_size", default=2)
    merge = merge if isinstance(merge, int) else merge[0]
    times = _first(config, "temporal_patch_size", default=1)
    channels = _first(config, "in_channels", "num_channels", "in_chans", default=3)
    count, side = 4 * merge * merge, 2 * merge

    def normal(*shape: int) -> Callable[[], Any]:
        return lambda: torch.randn(shape)

    shapes = [
        normal(2 * count, channels * times * patch * patch), normal(2 * count, channels, patch, patch),
        normal(2 * count, channels * patch * patch), normal(2 * count, channels, times, patch, patch),
        normal(2 * count, _first(config, "hidden_size", default=32)), normal(2 * count, patch * patch * channels * 2),
    ]  # fmt: skip
    grids = [lambda: torch.tensor([[1, side, side]] * 2)]
    return {
        **{name: shapes for name in ("hidden_states", "pixel_values") if name in parameters},
        "grid_thw": grids, "image_grid_thw": grids, "merge_sizes": [lambda: torch.tensor([merge, merge])],
    }  # fmt: skip


def _sound(config: Any, model: Any) -> Makers:
    import torch

    bins = _first(config, "num_mel_bins", "feature_size", "input_feat_per_channel", "n_mels", "feat_dim", default=16)
    hidden = _first(config, "hidden_size", "d_model", default=32)
    kind = getattr(config, "model_type", "")
    long = 2 * _first(config, "max_source_positions", default=50)
    dim = _first(config, "feature_projection_input_dim", "input_dim", "audio_channels", "input_feat_size", default=128)

    def normal(*shape: int) -> Callable[[], Any]:
        return lambda: torch.randn(shape)

    whisper = kind in ("qwen2_audio", "voxtral") or "whisper" in kind
    usual = [normal(2, 64, bins), normal(2, bins, 64)]
    usual = [normal(2, bins, long), *usual] if whisper else [*usual, normal(2, bins, long)]

    def masks(kind: Any) -> list[Callable[[], Any]]:
        sizes = [(2, 64), (2, long), (2, SAMPLES), (2, 1, SAMPLES)]
        return [lambda size=size: torch.ones(size, dtype=kind) for size in sizes]

    wide = _first(config, "max_length", default=64)
    return {
        "input_values": [normal(2, SAMPLES), normal(2, 1, SAMPLES), normal(2, wide, bins), normal(2, 64, bins),
                         normal(2, FRAMES), normal(2, 1, FRAMES)],
        "input_features": [
            *usual, normal(2, 64, 2 * bins), normal(2, 64, 7 * bins), normal(2, 1, 64, bins), normal(2, 64, dim),
            normal(2, dim, 64), normal(2, 1, 256, bins), normal(2, 64, 160),
        ],
        "input_features_mask": masks(torch.long) + masks(torch.bool),
        "feature_attention_mask": masks(torch.long),
        "padding_mask": [*masks(torch.long)[2:], *masks(torch.bool)[2:]],
        "audio_mel": [normal(2, 64, _first(config, "input_feat_size", default=bins))],
        "audio_mel_mask": [lambda: torch.zeros(2, 64, dtype=torch.bool)],
        "latents": [normal(2, hidden, LENGTH), normal(2, LENGTH, hidden)],
    }  # fmt: skip


def _series(config: Any) -> Makers:
    import torch

    context = _first(config, "context_length", default=32)
    lags = max(_first(config, "lags_sequence", default=None) or [0])
    channels = _first(config, "num_input_channels", default=None)
    times = _first(config, "num_time_features", default=0) or 0
    horizon = _first(config, "prediction_length", default=4) or 4
    tail = () if channels is None else (channels,)
    state, act = _first(config, "state_dim", default=17), _first(config, "act_dim", default=4)

    def normal(*shape: int) -> Callable[[], Any]:
        return lambda: torch.randn(shape)

    return {
        "past_values": [normal(2, context, *tail), normal(2, context + lags)],
        "past_values_padding": [lambda: torch.zeros(2, context, dtype=torch.long)],
        "freq": [lambda: torch.zeros(2, 1, dtype=torch.long)],
        "past_time_features": [normal(2, context + lags, times)],
        "past_observed_mask": [lambda: torch.ones(2, context + lags)],
        "future_values": [normal(2, horizon)],
        "future_time_features": [normal(2, horizon, times)],
        "states": [normal(2, LENGTH, state)],
        "actions": [normal(2, LENGTH, act)],
        "rewards": [normal(2, LENGTH, 1)],
        "returns_to_go": [normal(2, LENGTH, 1)],
        "timesteps": [lambda: torch.arange(LENGTH).expand(2, LENGTH).contiguous()],
        "state": [normal(2, _first(config, "max_state_dim", default=state))],
        "action_embeds": [normal(2, 4, _first(config, "hidden_size", default=32))],
    }
