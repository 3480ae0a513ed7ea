"""A conversation in the terminal or through a pipe, the key-value cache kept from turn to turn."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from typing import IO, Any

from mlxport.errors import UsageError
from mlxport.printable import printable, write_generated
from mlxport.run.generate import stream, usable_kv
from mlxport.run.generation_result import GenerationResult, reset_peak_memory
from mlxport.run.kv import KVQuant, prompt_cache
from mlxport.run.load import LoadedModel, load, refuse_encoder
from mlxport.run.sampling import Sampling
from mlxport.source.tokenizer_loading import encoded, rendered

__all__ = ["ChatSession", "chat"]

_HELP = "/reset forgets the conversation, /exit (or end of input) leaves"
_COMMAND = re.compile(r"/[a-z]+")


class ChatSession:
    """A conversation with one model.

    The whole conversation goes through the tokenizer's chat template each turn; of its tokens, those that the cache
    holds already are not computed again. Where a template rewrites earlier turns (some drop past reasoning), the cache
    is cut back to what still agrees, or started anew for models whose cache cannot be cut.
    """

    def __init__(
        self, loaded: LoadedModel, sampling: Sampling, system_prompt: str | None = None, kv: KVQuant | None = None
    ) -> None:
        if not loaded.tokenizer.has_chat_template:
            hint = f'continue a text with: mlxport generate {shlex.quote(str(loaded.path))} --prompt "a text"'
            raise UsageError(f"{loaded.path}: the tokenizer has no chat template, so the model cannot chat", hint=hint)
        self.loaded = loaded
        self.sampling = sampling
        self.kv = kv
        self._system = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
        self._turns = 0
        self.reset()

    def reset(self) -> None:
        """Forget the conversation; the system prompt stays."""
        self.messages: list[dict[str, str]] = list(self._system)
        self._drop_cache()

    def _drop_cache(self) -> None:
        self._cache: list[Any] | None = None
        self._cached: list[int] = []

    def ask(self, text: str, on_text: Callable[[str], object] | None = None) -> GenerationResult:
        """Answer `text`; Ctrl-C cuts the answer short and keeps what there is of it.

        Raises:
            UsageError: The chat template refuses the conversation; it stays as it was.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        templated = rendered(self.loaded.tokenizer, messages)
        tokens = encoded(self.loaded.tokenizer, templated, add_special_tokens=False)
        reused = self._reuse(tokens)
        sampling = self.sampling if self._turns == 0 else self._unseeded()
        result = stream(
            self.loaded,
            tokens[reused:],
            sampling,
            on_text=on_text,
            kv=self.kv,
            cache=self._cache,
            cached_tokens=reused,
            catch_interrupt=True,
        )
        self._turns += 1
        self.messages = [*messages, {"role": "assistant", "content": result.text}]
        if result.finish_reason == "interrupted":
            self._drop_cache()
        else:
            # mlx-lm runs the model on every token that it yields, the one that ends the answer included.
            end = [] if result.end_token is None else [result.end_token]
            self._cached = [*tokens, *result.tokens, *end]
        return result

    def _unseeded(self) -> Sampling:
        # Seeding again would make the second answer repeat the random choices of the first.
        chosen = self.sampling
        return Sampling(chosen.max_tokens, chosen.temp, chosen.top_p, chosen.min_p, chosen.top_k)

    def _reuse(self, tokens: list[int]) -> int:
        """Make the cache hold a proper prefix of `tokens`, and return its length."""
        from mlx_lm.models.cache import can_trim_prompt_cache, trim_prompt_cache

        held = len(self._cached)
        keep = _common_prefix(self._cached, tokens[:-1])
        if self._cache is not None and keep > 0:
            if held == keep:
                return keep
            if can_trim_prompt_cache(self._cache) and trim_prompt_cache(self._cache, held - keep) == held - keep:
                return keep
        self._cache, self._cached = prompt_cache(self.loaded.model, self.kv), []
        return 0


def _common_prefix(left: list[int], right: list[int]) -> int:
    length = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        length += 1
    return length


def chat(
    path: str | os.PathLike[str] | LoadedModel,
    *,
    max_tokens: int = 256,
    temp: float = 0.0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    top_k: int = 0,
    seed: int | None = None,
    system_prompt: str | None = None,
    kv_bits: int | str | None = None,
    kv_group_size: int | None = None,
    quantized_kv_start: int | None = None,
    trust_remote_code: bool = False,
    quiet: bool = False,
    stdin: IO[str] | None = None,
    stdout: IO[str] | None = None,
    stderr: IO[str] | None = None,
) -> None:
    """Talk to a model, one message a line; answers go to `stdout`, everything else to `stderr`.

    ``/reset`` forgets the conversation, ``/exit``, end of input or Ctrl-C leaves; Ctrl-C during an answer stops
    the answer (and leaves, where the input is not a terminal). After each answer speed and peak memory are printed
    unless `quiet`. ``kv_bits``, ``kv_group_size`` and ``quantized_kv_start`` are as in :func:`mlxport.run.generate`.

    Raises:
        UsageError: The tokenizer has no chat template, an option is out of range, or there can be no such cache.
        SourceError: The folder cannot be used; see :func:`mlxport.run.load`.
    """
    sampling = Sampling(max_tokens, temp, top_p, min_p, top_k, seed)
    source, out, err = stdin or sys.stdin, stdout or sys.stdout, stderr or sys.stderr
    reset_peak_memory()
    loaded = path if isinstance(path, LoadedModel) else load(path, trust_remote_code=trust_remote_code)
    refuse_encoder(loaded.model, loaded.path, "chat")

    def warn(line: str) -> None:
        print(f"warning: {printable(line)}", file=err)

    kv = usable_kv(loaded, kv_bits, kv_group_size, quantized_kv_start, warn)
    session = ChatSession(loaded, sampling, system_prompt, kv)
    interactive = source.isatty()
    if interactive:
        print(_HELP, file=err)
    try:
        for line in _lines(source, err, interactive):
            if not _turn(session, line, out, err, interactive, quiet):
                break
    except KeyboardInterrupt:
        print(file=err)


def _lines(source: IO[str], err: IO[str], interactive: bool) -> Iterator[str]:
    """Yield what is typed, without empty lines; on a terminal with a prompt and line editing."""
    if interactive and source is sys.stdin:
        import contextlib

        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (input() edits lines and keeps a history once it is imported)
    while True:
        if interactive and source is sys.stdin and sys.stdout.isatty():
            try:
                line = input(">> ")
            except EOFError:
                print(file=err)
                return
        else:
            if interactive:
                print(">> ", end="", file=err, flush=True)
            line = source.readline()
            if not line:
                return
        if line.strip():
            yield line.strip()


def _turn(session: ChatSession, line: str, out: IO[str], err: IO[str], interactive: bool, quiet: bool) -> bool:
    """Do one line; False when it was the last."""
    if _COMMAND.fullmatch(line):
        if line in ("/exit", "/quit"):
            return False
        if line == "/reset":
            session.reset()
            print("conversation forgotten", file=err)
        else:
            print(_HELP if line == "/help" else f"unknown command {line}: {_HELP}", file=err)
        return True

    def show(piece: str) -> None:
        write_generated(piece, out)

    from mlxport.transform.cpu_experts import remarked

    with remarked(lambda remark: print(f"warning: {remark}", file=err)):
        result = session.ask(line, show)
        out.write("\n")
        out.flush()
    limit = session.loaded.context_length
    if limit is not None and result.cached_tokens + result.prompt_tokens + len(result.tokens) > limit:
        print(f"warning: the conversation is longer than the {limit} tokens that the model was made for", file=err)
    if not quiet:
        print(result.summary(), file=err, flush=True)
    return interactive or result.finish_reason != "interrupted"
