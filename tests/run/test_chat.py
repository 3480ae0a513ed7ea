from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess

import pytest

from command import start
from mlxport.errors import UsageError
from mlxport.run import ChatSession, Sampling, chat, load
from mlxport.run.generate import stream

TURNS = ["hello", "tell me more", "and then?"]


def fresh(session: ChatSession, messages: list[dict[str, str]]) -> tuple[list[int], str]:
    """The same turn with nothing cached."""
    tokenizer = session.loaded.tokenizer
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    tokens = tokenizer.encode(text, add_special_tokens=False)
    return tokens, stream(session.loaded, tokens, session.sampling).text


def check_turns(session: ChatSession) -> list[int]:
    """Each answer is what a run without cache gives; returns the number of cached tokens of each turn."""
    cached = []
    for turn in TURNS:
        messages = [*session.messages, {"role": "user", "content": turn}]
        result = session.ask(turn)
        tokens, text = fresh(session, messages)
        assert result.text == text
        assert result.cached_tokens + result.prompt_tokens == len(tokens)
        assert session.messages == [*messages, {"role": "assistant", "content": text}]
        cached.append(result.cached_tokens)
    return cached


@pytest.mark.parametrize("kind", ["llama", "mamba"])
def test_answers_are_those_of_an_uncached_run(kind, request):
    session = ChatSession(load(request.getfixturevalue(kind)), Sampling(max_tokens=8), system_prompt="Be brief")
    cached = check_turns(session)
    assert cached[0] == 0
    if kind == "llama":
        # The system prompt and the first turn at least, whatever the random answer decodes to.
        assert cached[1] >= len("Be brief") + 3 + len("hello") + 2 and cached[2] > cached[1]


def test_the_cache_holds_what_the_session_says(llama, tmp_path):
    loaded = load(llama)
    session = ChatSession(loaded, Sampling(max_tokens=6))
    answer = session.ask("hello")
    assert answer.finish_reason == "length"
    assert {layer.offset for layer in session._cache} == {len(session._cached)}
    folder = shutil.copytree(llama, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": answer.tokens[3]}))
    session = ChatSession(load(folder), Sampling(max_tokens=6))
    assert session.ask("hello").finish_reason == "stop"
    assert {layer.offset for layer in session._cache} == {len(session._cached)}


def test_a_template_that_rewrites_the_past_is_followed(llama, tmp_path):
    # Like templates that drop earlier reasoning: past answers are replaced.
    folder = shutil.copytree(llama, tmp_path / "model")
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}<|{{ m.role }}|>"
        "{{ 'forgotten' if m.role == 'assistant' else m.content }}<|end|>{% endfor %}<|assistant|>"
    )
    cached = check_turns(ChatSession(load(folder), Sampling(max_tokens=8)))
    assert cached[1] == len("hello") + 3  # up to the answer, which no longer agrees


def test_sampling_goes_on_after_the_first_answer_and_the_whole_is_reproducible(llama):
    loaded = load(llama)

    def answers(seed: int) -> list[str]:
        session = ChatSession(loaded, Sampling(max_tokens=12, temp=1.0, seed=seed))
        said = []
        for _ in range(3):
            said.append(session.ask("hello").text)
            session.reset()
        return said

    one = answers(1)
    assert answers(1) == one != answers(2)
    assert len(set(one)) > 1


def test_a_pipe_gets_answers_on_stdout_and_the_rest_on_stderr(llama):
    out, err = io.StringIO(), io.StringIO()
    chat(llama, max_tokens=5, stdin=io.StringIO("hello\n\n  \nmore\n"), stdout=out, stderr=err)
    session = ChatSession(load(llama), Sampling(max_tokens=5))
    assert out.getvalue() == f"{session.ask('hello').text}\n{session.ask('more').text}\n"
    assert err.getvalue().count("Generation: 5 tokens") == 2 and err.getvalue().count("Peak memory") == 2
    assert "in the cache" in err.getvalue() and ">>" not in err.getvalue()


def test_commands(llama):
    out, err = io.StringIO(), io.StringIO()
    stdin = io.StringIO("hello\n/help\n/unknown\n/reset\nhello\n/etc/hosts what?\n/exit\nnever\n")
    chat(llama, max_tokens=4, stdin=stdin, stdout=out, stderr=err, quiet=True)
    session = ChatSession(load(llama), Sampling(max_tokens=4))
    hello = session.ask("hello").text
    assert out.getvalue() == f"{hello}\n{hello}\n{session.ask('/etc/hosts what?').text}\n"
    assert "unknown command /unknown" in err.getvalue() and "conversation forgotten" in err.getvalue()
    assert "Peak memory" not in err.getvalue()
    assert stdin.read() == "never\n"


def test_a_long_conversation_warns(llama):
    err = io.StringIO()
    chat(llama, max_tokens=2, stdin=io.StringIO("x" * 300 + "\n"), stdout=io.StringIO(), stderr=err, quiet=True)
    assert "longer than the 256 tokens" in err.getvalue()


def test_without_a_chat_template_generate_is_the_hint(trained):
    with pytest.raises(UsageError, match="no chat template") as caught:
        chat(trained, stdin=io.StringIO("hello\n"))
    assert "mlxport generate" in caught.value.hint


def test_options_are_checked_before_loading():
    with pytest.raises(UsageError, match="top_p"):
        chat("nowhere", top_p=2.0)


class Terminal(io.StringIO):
    """A terminal on which Ctrl-C is pressed instead of typing a third line."""

    def isatty(self) -> bool:
        return True

    def readline(self, *size: int) -> str:
        line = super().readline(*size)
        if not line:
            raise KeyboardInterrupt
        return line


class Impatient(io.StringIO):
    """Ctrl-C arrives at the third piece of text."""

    pieces = 0

    def write(self, text: str) -> int:
        self.pieces += 1
        if self.pieces == 3:
            raise KeyboardInterrupt
        return super().write(text)


def test_ctrl_c_at_the_prompt_leaves(llama):
    err = io.StringIO()
    chat(llama, max_tokens=3, stdin=Terminal("hello\n"), stdout=io.StringIO(), stderr=err)
    assert ">> " in err.getvalue() and err.getvalue().endswith(">> \n")


def test_ctrl_c_during_an_answer_stops_it_and_the_conversation_goes_on(llama):
    out = Impatient()
    chat(llama, max_tokens=10, stdin=Terminal("hello\nmore\n"), stdout=out, stderr=io.StringIO(), quiet=True)
    assert out.getvalue().count("\n") >= 2  # the cut answer and the next one


def test_after_an_interrupted_answer_the_next_is_that_of_an_uncached_run(llama):
    session = ChatSession(load(llama), Sampling(max_tokens=10))
    pieces: list[str] = []

    def stop(text: str) -> None:
        pieces.append(text)
        if len(pieces) == 3:
            raise KeyboardInterrupt

    result = session.ask("hello", stop)
    assert result.finish_reason == "interrupted" and session.messages[-1]["content"] == result.text
    assert result.text == "".join(pieces)
    check_turns(session)


def test_a_signal_ends_a_script_politely(llama):
    code = "import sys; from mlxport.run import chat; chat(sys.argv[1], max_tokens=3, quiet=True)"
    with start(llama, code=code, stdin=subprocess.PIPE) as process:
        process.stdin.write("hello\n")
        process.stdin.flush()
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0 and "Traceback" not in err
