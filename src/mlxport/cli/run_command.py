"""The command that does with a converted model what it is for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlxport.cli.derived_flags import flags_of
from mlxport.cli.flags import Json, Quiet, Trust, Verbose
from mlxport.cli.json_output import print_json
from mlxport.errors import UsageError
from mlxport.options.option_field import Option, declared
from mlxport.run.tasks.task_options import OPTIONS, SPEECH_TASKS, RunOptions

if TYPE_CHECKING:
    from mlxport.run.tasks.pipeline import Pipeline

__all__ = ["TASK_OPTIONS", "run"]

_STDIN = "-"
_NAMED = 2  # tasks in the heading of a list of options


def _of_all_tasks() -> tuple[Option, ...]:
    """Every option of every task once, under the tasks that have it; none has a default, which is the task's."""
    found: dict[str, list[tuple[str, Option]]] = {}
    for task, kind in OPTIONS.items():
        for known in declared(kind):
            found.setdefault(known.name, []).append((task, known))
    return tuple(_of_tasks(among) for among in found.values())


def _of_tasks(among: list[tuple[str, Option]]) -> Option:
    tasks, options = [task for task, _ in among], [known for _, known in among]
    panel = f"Of {' and '.join(tasks)}" if len(tasks) <= _NAMED else "Of several tasks"
    helps = dict.fromkeys(known.help for known in options)
    return replace(options[0], panel=panel, help=" Or: ".join(helps), default=_unset(options[0]))


def _unset(known: Option) -> Any:
    return False if isinstance(known.default, bool) else None


TASK_OPTIONS = _of_all_tasks()


@flags_of(TASK_OPTIONS)
def run(
    path: Annotated[str, typer.Argument(metavar="DST", help="A converted model: a folder or a hub id.")],
    inputs: Annotated[
        list[str] | None, typer.Argument(metavar="[INPUT]...", help='Texts or files; "-" reads texts, one a line.')
    ] = None,
    *,
    task: Annotated[
        str | None, typer.Option(help="Another task than the one on record; of speech also transcribe or translate.")
    ] = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    **options: Any,
) -> None:
    """Do what a converted model is for: label, embed, transcribe, translate, write."""
    from mlxport.run.tasks.opened_task import other_task
    from mlxport.run.tasks.opened_task import pipeline as opened

    spoken = task if task in SPEECH_TASKS else None
    pipeline = opened(path, None if spoken else task, trust_remote_code=trust_remote_code)
    if spoken is not None:
        if pipeline.task != "automatic-speech-recognition":
            raise other_task(path, spoken, pipeline.task)
        if options["task_name"] not in (None, spoken):
            hint = "leave one of them out"
            raise UsageError(f"--task {spoken} and --task-name {options['task_name']} do not agree", hint=hint)
        options["task_name"], pipeline.spelled = spoken, {"task_name": "--task"}
    pipeline.shows = not (quiet or as_json) and sys.stderr.isatty()
    given = {known.name: options[known.name] for known in TASK_OPTIONS if options[known.name] != _unset(known)}
    chosen = pipeline.checked(given)
    items = _items(inputs or [], pipeline, chosen, path)
    needed = "" if as_json else pipeline.target_needed(chosen)
    if needed and sys.stdout.isatty():
        what = f"{pipeline.task} gives what a terminal cannot show"
        raise UsageError(what, hint=f"add {needed}, or pipe it into another program")
    with _progress(len(items), pipeline.task, quiet or as_json) as on_done:
        results = pipeline.run(items, chosen, on_done)
    found: Any = results
    if len(items) == 1:
        found = pipeline.alone(results[0], chosen)
        results = [found]
    written = pipeline.write(results, chosen)
    for name in written:
        typer.echo(f"written: {name}", err=True)
    if as_json:
        print_json([pipeline.plain(one) for one in results] if len(items) > 1 else pipeline.plain(found))
    elif needed:
        typer.echo(pipeline.as_bytes(found), nl=False)
    elif not written or getattr(chosen, "similarity", False):
        for line in pipeline.lines(items, results, chosen):
            typer.echo(line)


def _items(given: list[str], pipeline: Pipeline, chosen: RunOptions, path: str) -> list[Any]:
    if _STDIN in given and pipeline.reads == "text":
        lines = [line.rstrip("\r\n") for line in sys.stdin if line.strip()]
        given = [item for part in given for item in (lines if part == _STDIN else [part])]
    items = pipeline.gathered(given, chosen)
    if not items:
        what = {"text": '"a text"', "picture": "picture.jpg", "sound": "talk.wav"}[pipeline.reads]
        example = " ".join(filter(None, [what, pipeline.also]))
        raise UsageError(f"{pipeline.task} needs a {pipeline.reads} to read", hint=f"mlxport run {path} {example}")
    return items


@contextmanager
def _progress(count: int, label: str, quiet: bool) -> Iterator[Callable[[int], object]]:
    """A bar for several inputs, on a terminal only; always on standard error."""
    if quiet or count < 2 or not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=count)
        yield lambda done: bar.advance(task, done)
