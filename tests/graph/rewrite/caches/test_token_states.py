"""Whatever a module carries from token to token is kept: it is captured for one token, and called for each."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from steps import PROMPTS, VOCABULARY, WIDTH, Pair
from torch import nn
from transformers import RwkvConfig, RwkvForCausalLM
from transformers.modeling_outputs import ModelOutput

from mlxport.errors import UnsupportedError

LAYERS = 2


class Recurrence(nn.Module):
    """``h = tanh(W x + U h)``, token after token; the state is what ``read`` gives and goes where ``write`` puts it."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.inner, self.outer = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)

    def run(self, x, state):
        x, made = self.inner(x), []
        for t in range(x.shape[1]):
            state = torch.tanh(x[:, t] + self.outer(state))
            made.append(state)
        return torch.stack(made, dim=1), state


class InStacks(Recurrence):
    """The states of all layers lie in one tensor, as RWKV's do."""

    def forward(self, x, state):
        made, last = self.run(x, state[0][:, :, self.number])
        state[0][:, :, self.number] = last
        return made


class InModules(Recurrence):
    """The module keeps its state to itself, as RecurrentGemma's do."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.kept = None

    def forward(self, x, state):
        made, self.kept = self.run(x, x.new_zeros(x.shape[0], WIDTH) if self.kept is None else self.kept)
        return made


class Recurrent(nn.Module):
    """Layers of one kind between an embedding and a head."""

    def __init__(self, kind: type[Recurrence]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(kind(number) for number in range(LAYERS))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=VOCABULARY))

    def forward(self, input_ids, state=None, use_cache=False):
        if state is None:
            state = [torch.zeros(input_ids.shape[0], WIDTH, LAYERS)]
            for layer in self.layers:
                layer.kept = None
        x = self.tokens(input_ids)
        for layer in self.layers:
            x = x + layer(x, state)
        return ModelOutput(logits=self.head(x), state=state)


class Outside(Recurrent):
    """Something is carried on that no layer computes."""

    def forward(self, input_ids, state=None, use_cache=False):
        output = super().forward(input_ids, [torch.zeros(input_ids.shape[0], WIDTH, LAYERS)], use_cache)
        total = output.logits.sum(1) + (0 if state is None else state[0])
        return ModelOutput(logits=output.logits + total[:, None], state=[total])


@pytest.mark.parametrize("kind", [InStacks, InModules])
def test_states_are_carried_from_token_to_token(tmp_path, kind):
    pair = Pair(Recurrent(kind), tmp_path)
    assert "each_token(lambda t, valid: self.layers[0](x[:, t : t + 1], valid, cache[0])" in pair.source
    pair.check()


def test_what_is_carried_outside_of_layers_is_refused(tmp_path):
    with pytest.raises(UnsupportedError, match="what it remembers is read by no module of a layer"):
        Pair(Outside(InStacks), tmp_path)


def test_weights_that_rwkv_divides_when_it_first_runs_stay_as_they_are(tmp_path):
    config = RwkvConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=3, rescale_every=2, use_cache=True)
    torch.manual_seed(0)
    pair = Pair(RwkvForCausalLM(config), tmp_path)
    assert "self.output(sigmoid * wkv_2) / 2" in pair.source
    assert [pair.generated(prompt) for prompt in PROMPTS] == [pair.wanted(prompt) for prompt in PROMPTS]


def test_rwkv_is_computed_for_all_tokens_at_once(tmp_path):
    """Its states lie in stacks, its tokens are shifted by one, and its attention is a function that is known."""
    config = RwkvConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, attention_hidden_size=WIDTH, num_hidden_layers=2, use_cache=True
    )
    torch.manual_seed(0)
    pair = Pair(RwkvForCausalLM(config), tmp_path)
    assert "each_token" not in pair.source
    assert "wkv(self.time_decay, self.time_first, key, value, cache, 1, state_mask)" in pair.source
    pair.check()
