"""Tokens that a picture becomes, by the rule of its model's processor: from sizes alone, no picture is read.

The rules are those of transformers' processors (``models/TYPE/image_processing_*.py``), which mlx-vlm follows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from math import ceil, floor, sqrt
from typing import Any

from mlxport.errors import ConfigError, UsageError

__all__ = [
    "PictureAsked",
    "PictureRule",
    "PictureTokens",
    "cropped",
    "in_place",
    "in_rows",
    "pooled",
    "tiled",
    "USUAL_PICTURE",
]

USUAL_PICTURE = (768, 1024)
"""Rows and columns of pixels of what is counted where nobody says a size: a photograph, or half a page."""

_MOST_STRETCHED = 200  # times that a side of a picture may be the other's, for Qwen's
_LARGEST_SIDE = 4096  # pixels, of Idefics3's and SmolVLM's


@dataclass(frozen=True)
class PictureTokens:
    """What a picture of one size becomes.

    Attributes:
        height: Rows of its pixels.
        width: Columns of them.
        tokens: Places in the prompt that its features take.
        marks: Tokens beside them that say where it begins and ends, and where its rows and tiles do.
        grid: Rows and columns of patches that the tower reads, of each tile.
        tiles: Pictures that it is cut into, the whole one among them.
    """

    height: int
    width: int
    tokens: int
    marks: int
    grid: tuple[int, int]
    tiles: int = 1

    @property
    def patches(self) -> int:
        """Those of all tiles."""
        return self.tiles * self.grid[0] * self.grid[1]

    @property
    def all_tokens(self) -> int:
        """What it takes of a context."""
        return self.tokens + self.marks

    def to_json(self) -> dict[str, Any]:
        """Plain values only."""
        return {**asdict(self), "patches": self.patches, "all_tokens": self.all_tokens}


@dataclass(frozen=True)
class PictureAsked:
    """What a rule is given.

    Attributes:
        height: Rows of a picture's pixels.
        width: Columns of them.
        config: config.json of the model.
        outer: What the files beside it say of the processor, as ``picture_settings`` reads them.
        pictures: And of that of pictures.
    """

    height: int
    width: int
    config: Mapping[str, Any]
    outer: Mapping[str, Any]
    pictures: Mapping[str, Any]

    @property
    def seen(self) -> Mapping[str, Any]:
        """The part of the config that describes the tower."""
        part = self.config.get("vision_config")
        return part if isinstance(part, Mapping) else {}

    def number(self, name: str, *others: Any, default: int | None = None) -> int:
        """The first number of one or more: of the processor of pictures, the whole one, ``others``, or the default.

        Raises:
            ConfigError: Nothing says it.
        """
        for value in (self.pictures.get(name), self.outer.get(name), *others, default):
            if type(value) is int and value > 0:
                return value
        raise ConfigError(f"neither config.json nor the processor's files say the {name} of pictures")

    def edge(self, name: str, default: int, field: str = "size") -> int:
        """A length of a size of the processor of pictures."""
        size = self.pictures.get(field)
        value = size.get(name) if isinstance(size, Mapping) else size
        return value if type(value) is int and value > 0 else default

    def made(self, tokens: int, marks: int, grid: tuple[int, int], tiles: int = 1) -> PictureTokens:
        """The answer."""
        return PictureTokens(self.height, self.width, tokens, marks, grid, tiles)


PictureRule = Callable[[PictureAsked], PictureTokens]
"""Raises ``ConfigError`` where a size is not said, ``UsageError`` for a picture that the processor does not take."""


def in_place(asked: PictureAsked) -> PictureTokens:
    """Qwen's: as large as it is, rounded to whole squares of patches that become a token."""
    if max(asked.height, asked.width) > _MOST_STRETCHED * min(asked.height, asked.width):
        message = f"a picture of {asked.width} x {asked.height} pixels: a side may be {_MOST_STRETCHED} times the other"
        raise UsageError(message, hint="give one of another shape")
    patch = asked.number("patch_size", asked.seen.get("patch_size"), default=14)
    merged = asked.number("merge_size", asked.seen.get("spatial_merge_size"), default=2)
    least = asked.number("min_pixels", default=asked.edge("shortest_edge", asked.edge("min_pixels", 56 * 56)))
    most = asked.number("max_pixels", default=asked.edge("longest_edge", asked.edge("max_pixels", 28 * 28 * 1280)))
    unit = patch * merged
    height, width = (round(side / unit) * unit for side in (asked.height, asked.width))
    if height * width > most:
        times = sqrt(asked.height * asked.width / most)
        height, width = (max(unit, floor(side / times / unit) * unit) for side in (asked.height, asked.width))
    elif height * width < least:
        times = sqrt(least / (asked.height * asked.width))
        height, width = (ceil(side * times / unit) * unit for side in (asked.height, asked.width))
    rows, columns = height // patch, width // patch
    return asked.made(rows * columns // merged**2, 2, (rows, columns))


def pooled(asked: PictureAsked) -> PictureTokens:
    """Gemma 3's: every picture becomes as many tokens, between two marks and two empty lines."""
    size, patch = (asked.number(name, asked.seen.get(name)) for name in ("image_size", "patch_size"))
    tokens = asked.number("image_seq_length", asked.config.get("mm_tokens_per_image"), default=256)
    return asked.made(tokens, 4, (size // patch, size // patch))


def cropped(asked: PictureAsked) -> PictureTokens:
    """LLaVA 1.5's: one square of patches, and those that are added less those that are left out."""
    patch = asked.number("patch_size", asked.seen.get("patch_size"))
    side = asked.number("image_size", asked.seen.get("image_size"))
    height, width = (asked.edge(name, side, "crop_size") for name in ("height", "width"))
    rows, columns = height // patch, width // patch
    added = asked.outer.get("num_additional_image_tokens", 1)
    strategy = asked.outer.get("vision_feature_select_strategy", asked.config.get("vision_feature_select_strategy"))
    tokens = rows * columns + (added if type(added) is int else 1) - (strategy in (None, "default"))
    return asked.made(tokens, 0, (rows, columns))


def tiled(asked: PictureAsked) -> PictureTokens:
    """Idefics3's and SmolVLM's: rows of tiles, each row on a line and each tile between marks, then the whole."""
    tile = asked.edge("longest_edge", 364, "max_image_size")
    size, patch = (asked.number(name, asked.seen.get(name)) for name in ("image_size", "patch_size"))
    scale = asked.number("scale_factor", asked.config.get("scale_factor"), default=2)
    each = asked.number("image_seq_len", default=(size // patch) ** 2 // scale**2)
    rows, columns = 0, 0
    if asked.pictures.get("do_image_splitting", True):
        height, width = _below(*_to_longest(asked.height, asked.width, asked.edge("longest_edge", 4 * 364)))
        rows, columns = ceil(height / tile), ceil(width / tile)
        rows, columns = (rows, columns) if rows * columns > 1 else (0, 0)
    tiles = rows * columns + 1
    marks = rows * (2 * columns + 1) + 3
    return asked.made(tiles * each, marks, (size // patch, size // patch), tiles)


def _to_longest(height: int, width: int, longest: int) -> tuple[int, int]:
    """With its longer side of a length, the other rounded up to an even number."""
    ratio = width / height
    if width >= height:
        other = int(longest / ratio)
        return max(other + other % 2, 1), longest
    other = int(longest * ratio)
    return longest, max(other + other % 2, 1)


def _below(height: int, width: int) -> tuple[int, int]:
    """With its longer side of at most what the processor ever makes."""
    if max(height, width) <= _LARGEST_SIDE:
        return height, width
    ratio = width / height
    if width >= height:
        return max(int(_LARGEST_SIDE / ratio), 1), _LARGEST_SIDE
    return _LARGEST_SIDE, max(int(_LARGEST_SIDE * ratio), 1)


def in_rows(asked: PictureAsked) -> PictureTokens:
    """Pixtral's, which Mistral 3 has: patches that become a token, and a mark after each row of them."""
    longest = asked.edge("longest_edge", 1024)
    patch = asked.number("patch_size", asked.seen.get("patch_size"), default=16)
    merged = asked.number("spatial_merge_size", asked.config.get("spatial_merge_size"), default=1)
    height, width = asked.height, asked.width
    if (times := max(height, width) / longest) > 1:
        height, width = floor(height / times), floor(width / times)
    rows, columns = (ceil(side / (patch * merged)) for side in (height, width))
    return asked.made(rows * columns, rows, (rows * merged, columns * merged))
