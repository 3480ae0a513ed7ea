"""Flags of the command line from the fields of an options class: spelling, type, default, help and heading."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ParamSpec, TypeVar, get_type_hints

import typer
from typer.core import TyperCommand

from mlxport.options.option_field import Option, declared

__all__ = ["SeveralValues", "flag", "flags_for", "flags_of", "with_bare_flags", "with_repeated_flags"]

P = ParamSpec("P")
Result = TypeVar("Result")
_ALONE = "alone"  # the value of a flag that stands alone
_PARSED = (str, float, int)  # what an argument is read as: the first of these that the field can be


def flags_for(kind: type[Any]) -> Callable[[Callable[P, Result]], Callable[P, Result]]:
    """Give a command that takes ``**options`` a flag for each option of ``kind``, listed before its own flags."""
    return flags_of([known for known in declared(kind) if not known.in_python_only])


def flags_of(options: Sequence[Option]) -> Callable[[Callable[P, Result]], Callable[P, Result]]:
    """Give a command that takes ``**options`` a flag for each of ``options``, listed before its own flags."""
    bare = {known.name for known in options if known.alone}
    flags = [_parameter(known) for known in options]

    def decorate(command: Callable[P, Result]) -> Callable[P, Result]:
        own = get_type_hints(command, include_extras=True)
        by_place: list[inspect.Parameter] = []
        after: list[inspect.Parameter] = []
        for name, parameter in inspect.signature(command).parameters.items():
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
                listed = after if parameter.kind is inspect.Parameter.KEYWORD_ONLY else by_place
                listed.append(parameter.replace(annotation=own[name]))

        @functools.wraps(command)
        def run(*args: P.args, **given: P.kwargs) -> Result:
            given.update((name, True) for name in bare if given[name] == _ALONE)
            return command(*args, **given)

        signature = inspect.Signature([*by_place, *flags, *after])
        run.__signature__ = signature  # type: ignore[attr-defined]
        run.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
        return run

    return decorate


def flag(kind: type[Any], name: str) -> Any:
    """The flag of one option, for another command that has it too."""
    (known,) = (known for known in declared(kind) if known.name == name)
    return typer.Option(*known.flags, help=_shown(known.help))


def with_bare_flags(arguments: list[str], kind: type[Any]) -> list[str]:
    """Let flags such as ``-q`` stand alone: give them a value where none follows."""
    bare = {spelling: known.alone for known in declared(kind) if known.alone for spelling in known.flags}
    result = []
    for position, argument in enumerate(arguments):
        result.append(argument)
        following = arguments[position + 1] if position + 1 < len(arguments) else "-"
        stands_alone = bare.get(argument)
        if stands_alone is not None and (following.startswith("-") or stands_alone(following)):
            result.append(_ALONE)
    return result


class SeveralValues(TyperCommand):
    """A command whose flags of lists take all values that follow them: ``run DST --image a.png b.png``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments, with each flag of a list repeated for each of its values."""
        return super().parse_args(ctx, with_repeated_flags(args, self.params))


def with_repeated_flags(arguments: Sequence[str], parameters: Sequence[Any]) -> list[str]:
    """Repeat a flag of a list before each value after its first: up to the next flag, and only after a first argument.

    Before that argument such a flag takes one value: it would take the argument, too.

    Args:
        arguments: Of a command, without its name.
        parameters: The command's, as click has them.
    """
    options = [known for known in parameters if known.param_type_name == "option"]
    several = {spelling for known in options if known.multiple for spelling in known.opts}
    one = {spelling for known in options if not known.is_flag for spelling in known.opts}
    result: list[str] = []
    behind = ""  # the flag whose values follow
    found = False  # whether the first argument was met
    left = iter(arguments)
    for argument in left:
        if argument == "--":
            return [*result, argument, *left]
        if argument.startswith("-") and argument != "-":
            result.append(argument)
            if argument in one:
                result += [value for value in (next(left, None),) if value is not None]
            behind = argument if found and argument in several else ""
            continue
        result += [behind, argument] if behind else [argument]
        found = True
    return result


def _parameter(known: Option) -> inspect.Parameter:
    default = known.default if known.unset is None else known.unset
    given = typer.Option(*known.flags, help=_shown(known.help), rich_help_panel=known.panel or None)
    annotation: Any = Annotated[_parsed(known.annotation, default), given]  # type: ignore[valid-type]
    return inspect.Parameter(known.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _shown(help: str) -> str:
    """What typer prints as it stands: it would read ``[as it is]`` as rich's markup."""
    from rich.markup import escape

    return escape(help)


def _parsed(annotation: str, default: Any) -> Any:
    """The type that typer reads an argument as, by the field's, as it is written."""
    if isinstance(default, bool):
        return bool
    if annotation.startswith("list[str]"):
        return list[str] | None
    kinds = annotation.split(" | ")
    read: Any = next(kind for kind in _PARSED if kind.__name__ in kinds)
    return read | None if "None" in kinds or default is None else read
