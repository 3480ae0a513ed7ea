"""Caches that begin anywhere: mlx-lm takes a token's position from its cache, so a few keys may stand at far positions.

A stand-in is of the class of the cache that it replaces. It holds the keys of the tokens that were read, knows where
these stand in the text, and answers for a mask what the real one would, had it held the whole text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

__all__ = ["FarCache", "Timeline", "stand_ins"]


@dataclass
class Timeline:
    """Where the tokens stand that have been read, and those of the call under way.

    Attributes:
        now: Positions of this call.
        past: Positions of earlier ones, as far as they can still be seen.
        windows: Every window that a mask was asked for.
    """

    now: list[int] = field(default_factory=list)
    past: list[int] = field(default_factory=list)
    windows: set[int] = field(default_factory=set)


class FarCache:
    """What makes a cache of mlx-lm one that begins anywhere; mixed into the class of a real one."""

    def begin_anywhere(self, timeline: Timeline, limit: int | None) -> None:
        """Hold nothing yet; ``limit`` is how many tokens the real cache keeps."""
        self.timeline, self.limit = timeline, limit
        self.keys: Any = None
        self.values: Any = None
        self.offset = 0

    def jump(self, *, forget: bool) -> None:
        """Go on where the call under way begins; ``forget`` what was read before."""
        self.offset = self.timeline.now[0]
        # A chunked cache counts its keys from the first one that it holds: there may be no gap between them.
        if forget or hasattr(self, "chunk_size"):
            self.keys = self.values = None
            self.start_position = self.offset

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """As the real one, with every key that was read."""
        if self.keys is not None:
            keys = mx.concatenate([self.keys, keys], axis=2)
            values = mx.concatenate([self.values, values], axis=2)
        self.keys, self.values = keys, values
        self.offset += len(self.timeline.now)
        return keys, values

    def make_mask(self, count: int, window_size: int | None = None, return_array: bool = False) -> mx.array:
        """Which of the keys each token of this call sees."""
        timeline = self.timeline
        if window_size is not None:
            timeline.windows.add(int(window_size))
        window = min((size for size in (window_size, self.limit) if size), default=None)
        queries = mx.array(timeline.now[:count])[:, None]
        keys = mx.array(timeline.past + timeline.now[:count])[None]
        mask = keys <= queries
        return mask if window is None else mask & (queries < keys + window)

    def maybe_trim_front(self) -> None:
        """Nothing is trimmed: masks say what is out of reach."""

    def size(self) -> int:
        """Tokens that the real one would hold."""
        return self.offset if self.limit is None else min(self.offset, self.limit)

    def empty(self) -> bool:
        """Whether the real one would hold none."""
        return self.offset == 0


def stand_ins(caches: Iterable[Any], timeline: Timeline) -> list[Any]:
    """Stand-ins for a model's caches; what keeps no keys (the states of recurrent layers) stays as it is."""
    return [_stand_in(cache, timeline) for cache in caches]


def leaves(caches: Iterable[Any]) -> Iterator[FarCache]:
    """The stand-ins in a model's caches, those in lists included."""
    for cache in caches:
        if isinstance(cache, FarCache):
            yield cache
        else:
            yield from leaves(getattr(cache, "caches", ()))


def _stand_in(cache: Any, timeline: Timeline) -> Any:
    if hasattr(cache, "caches"):
        cache.caches = tuple(_stand_in(part, timeline) for part in cache.caches)
        return cache
    if not (hasattr(cache, "update_and_fetch") and hasattr(cache, "offset")):
        return cache
    cls = type(cache)
    found: Any = object.__new__(type(f"Far{cls.__name__}", (FarCache, cls), {}))
    found.__dict__.update(vars(cache))
    found.begin_anywhere(timeline, getattr(cache, "max_size", None))
    return found
