"""A model whose caches are read wrongly in one way fails in that way, at the token where it goes wrong."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map
from mlx_lm.models import llama, mamba
from mlx_lm.models.cache import ArraysCache, KVCache

from mlxport.parity.generation_checks import Continuation, check_generation, smallest_window
from mlxport.quant.tolerances import ROWS

SIZES = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48,
         "num_attention_heads": 4, "rms_norm_eps": 1e-5, "vocab_size": 64, "head_dim": 8}  # fmt: skip
WINDOWED = {**SIZES, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}


def seeded(model):
    mx.random.seed(0)
    model.update(tree_map(lambda p: mx.random.normal(p.shape) * (0.3 if p.ndim > 1 else 1), model.parameters()))
    return model


def make_llama(cls=llama.Model, **changes):
    return seeded(cls(llama.ModelArgs.from_dict({**SIZES, **changes})))


def make_mamba(cls=mamba.Model):
    sizes = {"model_type": "mamba", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "state_size": 4,
             "num_hidden_layers": 2, "conv_kernel": 4, "use_bias": False, "use_conv_bias": True,
             "time_step_rank": 2}  # fmt: skip
    return seeded(cls(mamba.ModelArgs.from_dict(sizes)))


def text(model, size, prompt, seed=0):
    ids = np.random.default_rng(seed).integers(0, 64, size).tolist()
    return Continuation(ids, prompt, np.array(model(mx.array([ids]))[0]))


def checked(model, right, beyond=None):
    texts = [text(right, 24, 11), text(right, 7, 3, seed=1), text(right, 24, 20, seed=2)]
    return check_generation(model, texts, beyond, ROWS["same weights"], "itself")


def failed(report):
    return [check.name for check in report.checks if check.failure]


def by_name(report):
    return {check.name: check for check in report.checks}


class Rope(llama.nn.Module):
    """Positions that are wrong where ``wrong`` makes them so."""

    def __init__(self, rope, wrong):
        super().__init__()
        self.rope, self.wrong = rope, wrong

    def __call__(self, x, offset=0):
        return self.rope(x, offset=self.wrong(offset))


def with_positions(wrong):
    model = make_llama()
    for layer in model.layers:
        layer.self_attn.rope = Rope(layer.self_attn.rope, wrong)
    return model


def test_the_model_itself_passes():
    right = make_llama()
    report = checked(right, right)
    assert not report.failures and (report.tokens, report.equal) == (14, 14)
    assert report.summary() == "generation: 14 tokens equal; chunks, batch, saved cache, trim: ok"
    assert all(check.relative < 1e-5 for check in report.checks)


def test_an_offset_that_is_off_by_one_after_the_prompt():
    report = checked(with_positions(lambda offset: offset + (offset > 0)), make_llama())
    assert {"tokens", "chunks", "saved cache", "trim"} <= set(failed(report))
    assert "generated token 2 after a prompt of 11 tokens differs" in by_name(report)["tokens"].failure
    assert "token 6 of a prompt of 11 tokens differs" in by_name(report)["chunks"].failure
    assert report.summary().endswith("FAILED") and report.equal < report.tokens


def test_one_offset_for_a_whole_batch():
    wrong = with_positions(lambda offset: offset.max() if isinstance(offset, mx.array) and offset.ndim else offset)
    assert failed(checked(wrong, make_llama())) == ["batch"]


def test_padding_that_is_attended_to():
    class Padded(llama.Model):
        def __call__(self, ids, cache=None):
            if ids.shape[0] > 1 and ids.shape[1] > 1:
                for held in cache:
                    held.finalize = lambda: None
            return super().__call__(ids, cache=cache)

    assert failed(checked(make_llama(Padded), make_llama())) == ["batch"]


def test_a_window_that_is_missing():
    right, wrong = make_llama(**WINDOWED), make_llama()
    assert smallest_window(right) == 8 and smallest_window(wrong) is None
    assert not checked(right, right).failures and "window" in by_name(checked(right, right))
    report = checked(wrong, right)
    assert "token 10 of a prompt of 11 tokens differs" in by_name(report)["tokens"].failure


def test_a_window_that_is_missing_and_longer_than_the_prompts():
    right = make_llama(**{**WINDOWED, "sliding_window": 40})
    beyond = text(right, 48, 32)
    assert not checked(right, right, beyond).failures
    report = checked(make_llama(), right, beyond)
    assert failed(report) == ["window"] and "generated token 10 after" in by_name(report)["window"].failure
    assert "40 tokens are more than were run" in checked(right, right).summary()


def test_a_state_that_is_not_carried_from_chunk_to_chunk():
    class Forgetful(mamba.Model):
        def __call__(self, ids, cache=None):
            if cache is not None and ids.shape[1] > 1:
                for held in cache:
                    held[0] = held[1] = None
            return super().__call__(ids, cache=cache)

    right = make_mamba()
    report = checked(right, right)
    assert failed(report) == ["batch"]  # mlx-lm's own mamba reads the padding of a batch into its states
    assert by_name(report)["trim"].limit == "ArraysCache cannot" and "trim: ArraysCache cannot" in report.summary()
    assert failed(checked(make_mamba(Forgetful), right)) == ["chunks", "batch"]


def test_what_a_saved_cache_and_a_trim_leave_behind():
    class Counting(llama.Model):
        """Positions counted by the model, not read from its caches."""

        def __call__(self, ids, cache=None):
            mine = {id(held): getattr(held, "seen", None) or 0 for held in cache or ()}
            for held in cache or ():
                if ids.shape[0] == 1:
                    held.offset, held.seen = mine[id(held)], mine[id(held)] + ids.shape[1]
            return super().__call__(ids, cache=cache)

    report = checked(make_llama(Counting), make_llama())
    assert failed(report) == ["saved cache", "trim"]


def test_a_cache_of_its_own_is_no_cache_of_mlx_lm():
    class Held(KVCache):
        pass

    class Own(llama.Model):
        def make_cache(self):
            return [Held() for _ in self.layers]

    report = checked(make_llama(Own), make_llama())
    assert failed(report) == ["saved cache"] and "KeyError: 'Held'" in by_name(report)["saved cache"].failure


@pytest.mark.parametrize("words, refused", [("takes no batches", True), ("shapes do not fit", False)])
def test_a_refusal_of_batches_is_a_limit_and_another_error_a_failure(words, refused):
    class Alone(llama.Model):
        def __call__(self, ids, cache=None):
            if ids.shape[0] > 1:
                raise ValueError(f"this model {words}")
            return super().__call__(ids, cache=cache)

    report = checked(make_llama(Alone), make_llama())
    batch = by_name(report)["batch"]
    assert failed(report) == ([] if refused else ["batch"])
    assert bool(batch.limit) == refused and words in batch.limit + batch.failure


def test_caches_that_mlx_lm_cannot_join():
    class Lonely(ArraysCache):
        merge = property()

    class Own(mamba.Model):
        def make_cache(self):
            return [Lonely(size=2) for _ in self.layers]

    assert by_name(checked(make_mamba(Own), make_mamba()))["batch"].limit == "mlx-lm's Lonely takes none"


def test_tokens_between_equal_logits_are_no_failure():
    right = make_llama()
    texts = [text(right, 24, 11), text(right, 7, 3, seed=1)]
    logits = texts[0].logits.copy()
    best = logits[15].argmax()
    logits[15, (best + 1) % 64] = np.nextafter(logits[15, best], np.float32(np.inf))
    report = check_generation(right, [Continuation(texts[0].ids, 11, logits), texts[1]], None, ROWS["float16"], "")
    assert not report.failures and (report.tokens, report.equal) == (14, 13)
    assert report.summary().startswith("generation: 13 of 14 tokens equal")
