"""Sizes of the inputs said by hand: ``x: B, 3, H*32, W*32; mask: B, L``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlxport.errors import UsageError

__all__ = ["AnySize", "FreeSize", "SizeSpec", "asked_sizes"]

_EXAMPLE = 'write it like "x: B, 3, H*32, W*32; mask: B, L"; a name is free, a number fixed, _ as the module allows'
_FREE = re.compile(r"(?:(\d+)\s*\*\s*)?([A-Za-z]\w*)(?:\s*\*\s*(\d+))?(?:\s*([+-])\s*(\d+))?")
_NAME = re.compile(r"[A-Za-z_]\w*(?:\.\w+)*")


@dataclass(frozen=True)
class FreeSize:
    """``factor * name + offset``."""

    name: str
    factor: int = 1
    offset: int = 0

    @property
    def plain(self) -> bool:
        """Whether it is a name alone."""
        return self.factor == 1 and not self.offset

    def takes(self, given: int) -> bool:
        """Whether an example of this size shows it: where it is not plain, with the name at 2 or more."""
        number, rest = divmod(given - self.offset, self.factor)
        return self.plain or (not rest and number > 1)

    def __str__(self) -> str:
        """As it may be written."""
        product = self.name if self.factor == 1 else f"{self.name}*{self.factor}"
        return f"{product}{self.offset:+d}" if self.offset else product


@dataclass(frozen=True)
class AnySize:
    """As the module allows."""

    def __str__(self) -> str:
        """As it is written."""
        return "_"


@dataclass(frozen=True)
class SizeSpec:
    """What was said: the sizes of an input, by its name; of one that is not named, as the module allows."""

    sizes: Mapping[str, tuple[int | FreeSize | AnySize, ...]]

    @classmethod
    def parse(cls, text: str) -> SizeSpec:
        """The specification that a text is.

        Raises:
            UsageError: It is none.
        """
        found: dict[str, tuple[int | FreeSize | AnySize, ...]] = {}
        for part in filter(None, (part.strip() for part in text.split(";"))):
            name, colon, sizes = (item.strip() for item in part.partition(":"))
            if not colon or not _NAME.fullmatch(name):
                raise UsageError(f"dynamic shapes: {part!r} is not of the form NAME: SIZE, SIZE", hint=_EXAMPLE)
            if name in found:
                raise UsageError(f"dynamic shapes: {name} is there twice", hint=_EXAMPLE)
            found[name] = tuple(_size(item.strip(), name) for item in sizes.split(",")) if sizes else ()
        if not found:
            raise UsageError("dynamic shapes: no input is named", hint=_EXAMPLE)
        return cls(found)

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Hold what was said against the shapes of an example's tensors, by the names of ``leaf_names``.

        Raises:
            UsageError: An input that there is not, another number of axes, or a fixed size that is not the example's.
        """
        for name, sizes in self.sizes.items():
            if name not in shapes:
                raise UsageError(
                    f"dynamic shapes: there is no input {name}", hint=f"the example has {', '.join(shapes) or 'none'}"
                )
            _check(name, sizes, shapes[name])

    def tied(self) -> frozenset[str]:
        """Names that stand in several places, or in a product or sum: those sizes follow from one another."""
        found = [size for sizes in self.sizes.values() for size in sizes if isinstance(size, FreeSize)]
        names = [size.name for size in found]
        return frozenset(size.name for size in found if not size.plain or names.count(size.name) > 1)

    def of(self, name: str, axis: int) -> int | FreeSize | AnySize:
        """What was said of one size."""
        return self.sizes[name][axis] if name in self.sizes else AnySize()

    def __str__(self) -> str:
        """As it may be written."""
        return "; ".join(f"{name}: {', '.join(map(str, sizes))}" for name, sizes in self.sizes.items())


def asked_sizes(dynamic: Any, text: str | None) -> Any:
    """What ``dynamic`` means beside ``dynamic_shapes``, which stands in its place.

    Raises:
        UsageError: Both say something, or the text is no specification.
    """
    if text is None:
        return dynamic
    if dynamic is not True:
        raise UsageError(
            "dynamic and dynamic_shapes both say which sizes are free", hint="leave dynamic (--no-dynamic) out"
        )
    return SizeSpec.parse(text)


def _size(text: str, name: str) -> int | FreeSize | AnySize:
    if text == "_":
        return AnySize()
    if text.isdigit():
        return int(text)
    match = _FREE.fullmatch(text)
    if match is None or (match[1] and match[3]):
        raise UsageError(f"dynamic shapes: {text!r} of {name} is no size", hint=_EXAMPLE)
    factor, offset = int(match[1] or match[3] or 1), int(match[5] or 0)
    if not factor:
        raise UsageError(f"dynamic shapes: {text!r} of {name} is always {offset}", hint="write the number")
    return FreeSize(match[2], factor, -offset if match[4] == "-" else offset)


def _check(name: str, sizes: tuple[Any, ...], shape: tuple[int, ...]) -> None:
    if len(sizes) != len(shape):
        raise UsageError(
            f"dynamic shapes: {name} is given {len(sizes)} sizes, the example's has {len(shape)}: {list(shape)}",
            hint=f"name each: {name}: {', '.join('_' for _ in shape)}",
        )
    for axis, (size, given) in enumerate(zip(sizes, shape, strict=True)):
        if isinstance(size, int) and size != given:
            raise UsageError(
                f"dynamic shapes: size {axis} of {name} is {size}, the example has {given}",
                hint=f"write {given}, or a name if it may change",
            )
        if isinstance(size, FreeSize) and not size.takes(given):
            raise UsageError(
                f"dynamic shapes: size {axis} of {name} is {size}, the example has {given}",
                hint=f"give an example of such a size, as {size.factor * 2 + size.offset}",
            )
