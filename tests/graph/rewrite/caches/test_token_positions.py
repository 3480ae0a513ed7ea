"""Positions are counted from the tokens that caches hold, read before any layer puts new ones there."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from steps import WIDTH, Model, Pair, causal

from mlxport.errors import UnsupportedError


def turned(x, past):
    """Rotary embedding of tokens that come after ``past`` others."""
    return turned_at(x, torch.arange(past, past + x.shape[2]))


def turned_at(x, positions):
    width = x.shape[-1]
    inverse = 1.0 / 10000.0 ** (torch.arange(0, width, 2) / width)
    angles = torch.outer(positions.float(), inverse).repeat(1, 2)
    first, second = x.chunk(2, dim=-1)
    return x * angles.cos() + torch.cat((-second, first), dim=-1) * angles.sin()


def turned_in_the_last_layer(query, key, value, past, layer):
    mask = causal(past, query.shape[2])
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


class TurnedLast(Model):
    """Of two layers, only the second turns queries and keys."""

    def __init__(self):
        super().__init__(turned_in_the_last_layer)
        first, second = self.layers
        second.turn = turned

    def forward(self, input_ids, past_key_values=None, use_cache=True):
        return super().forward(input_ids, past_key_values, use_cache)


def added(x, past):
    table = torch.sin(torch.outer(torch.arange(64).float(), torch.arange(1, WIDTH + 1) / WIDTH))
    return x + table[torch.arange(past, past + x.shape[1])[None]]


def looked_up_flat(x, past):
    table = torch.sin(torch.outer(torch.arange(64).float(), torch.arange(1, WIDTH + 1) / WIDTH))
    positions = torch.arange(past, past + x.shape[1])
    return x + table.index_select(0, positions).unsqueeze(0)


def looked_up_in_planes(x, past):
    """Positions of several kinds, before the axis of the rows."""
    table = torch.sin(torch.outer(torch.arange(64).float(), torch.arange(1, WIDTH + 1) / WIDTH))
    positions = torch.arange(past, past + x.shape[1]).view(1, 1, -1).expand(4, x.shape[0], -1)
    return x + table[positions[1:]].sum(0)


def attend(query, key, value, past, layer):
    return F.scaled_dot_product_attention(query, key, value, attn_mask=causal(past, query.shape[2]))


def test_offset_is_read_before_the_layers(tmp_path):
    pair = Pair(TurnedLast(), tmp_path)
    lines = [line.strip() for line in pair.source.splitlines()]
    read = next(index for index, line in enumerate(lines) if "cache[0].offset" in line)
    assert lines[read].startswith("offset = ")
    assert read < next(index for index, line in enumerate(lines) if "self.layers[0](" in line)
    pair.check()


@pytest.mark.parametrize("way", [added, looked_up_in_planes])
def test_tables_of_positions(tmp_path, way):
    pair = Pair(Model(attend, way), tmp_path)
    assert "positions_after(" in pair.source
    pair.check()


def test_positions_that_a_batch_has_once(tmp_path):
    pair = Pair(Model(attend, looked_up_flat), tmp_path)
    pair.check(batched=False)
    with pytest.raises(ValueError, match="its prompts must be of one length"):
        pair.in_a_batch()


class CountsNoPadding(Model):
    """Positions count the tokens that are not 0, which stands for padding."""

    def forward(self, input_ids, past_key_values=None, use_cache=True):
        real = input_ids.ne(0).int()
        table = torch.sin(torch.arange(64 * WIDTH).float()).view(64, WIDTH)
        self.embed = lambda x, past: x + F.embedding((torch.cumsum(real, dim=1).int() + past) * real, table)
        return super().forward(input_ids, past_key_values, use_cache)


def test_positions_that_count_what_is_no_padding(tmp_path):
    pair = Pair(CountsNoPadding(attend), tmp_path)
    assert "row_offset(offset)" in pair.source
    pair.check()


class LeftToGenerate(Model):
    """Positions are told by whoever calls; by itself it takes the first of the new tokens for the first of all."""

    def forward(self, input_ids, past_key_values=None, use_cache=True, position_ids=None):
        self.embed = lambda x, past: x + self._table(x.shape[1], position_ids)
        return super().forward(input_ids, past_key_values, use_cache)

    def _table(self, length, position_ids):
        if position_ids is None:
            position_ids = torch.arange(length)[None]
        return F.embedding(position_ids, torch.sin(torch.arange(64 * WIDTH).float()).view(64, WIDTH))


class NeverCounted(LeftToGenerate):
    """As above, and nobody can tell it."""

    def forward(self, input_ids, past_key_values=None, use_cache=True):
        return super().forward(input_ids, past_key_values, use_cache)


class TurnedByTheCaller(Model):
    """Rotary positions that are told by whoever calls."""

    def forward(self, input_ids, past_key_values=None, use_cache=True, position_ids=None):
        for layer in self.layers:
            layer.turn = lambda x, past: turned_at(
                x, torch.arange(x.shape[2]) if position_ids is None else position_ids[0]
            )
        return super().forward(input_ids, past_key_values, use_cache)


@pytest.mark.parametrize("kind", [LeftToGenerate, TurnedByTheCaller])
def test_positions_that_are_left_to_generate(tmp_path, kind):
    Pair(kind(attend), tmp_path).check()


def test_positions_that_nobody_counts_are_refused(tmp_path):
    with pytest.raises(UnsupportedError, match="positions of the model do not follow from the tokens before"):
        Pair(NeverCounted(attend), tmp_path)
