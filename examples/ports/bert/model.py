"""BertModel in MLX."""

import json
from dataclasses import dataclass, fields
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn


def check_inputs(sizes, limits=None, /, **arrays):
    """Raise ValueError unless each array has its sizes.

    An int is fixed, a name is one size wherever it stands, (name, factor, offset) is factor * name + offset.
    """
    known = {}
    for name, array in arrays.items():
        found = array.shape if isinstance(array, mx.array) else None
        fits = found is not None and len(found) == len(sizes[name])
        for size, want in zip(found or (), sizes[name], strict=False):
            if isinstance(want, int):
                fits = fits and size == want
                continue
            letter, factor, offset = want if isinstance(want, tuple) else (want, 1, 0)
            number, rest = divmod(size - offset, factor)
            fits = fits and rest == 0 and number == known.setdefault(letter, number)
            low, high, *steps = (limits or {}).get(letter, (number, number))
            step, remainder = steps or (1, 0)
            if fits and (number < low or (high is not None and number > high) or number % step != remainder):
                bounds = f"at least {low}" + ("" if high is None else f" and at most {high}")
                bounds += f", {remainder} modulo {step}" if step > 1 else ""
                raise ValueError(f"{name} has shape {found}: {letter} is {number} and must be {bounds}")
        if not fits:
            shape = ", ".join(f"{w[1]} * {w[0]} + {w[2]}" if isinstance(w, tuple) else str(w) for w in sizes[name])
            given = f" (with {known})" if known else ""
            raise ValueError(
                f"{name} must be an mx.array of shape ({shape}){given}, not {found or type(array).__name__}"
            )


def masked_attention(q, k, v, scale, mask):
    """Attention under a mask, boolean or added; a query that may see no key gives zeros."""
    out = mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)
    visible = mask if mask.dtype == mx.bool_ else mask > -mx.inf
    return mx.where(visible.any(axis=-1, keepdims=True), out, 0)


@dataclass
class ModelArgs:
    model_type: str = "bert"
    vocab_size: int = 30522
    hidden_size: int = 768
    max_position_embeddings: int = 512
    layer_norm_eps: float = 1e-12
    attention_head_size: int = 64
    intermediate_size: int = 3072

    @classmethod
    def from_dict(cls, params: dict) -> "ModelArgs":
        names = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in params.items() if key in names})


class BertEmbeddings(nn.Module):
    def __init__(self, args: ModelArgs):
        super().__init__()
        self.position_ids = mx.zeros((1, 512), mx.int64)
        self.word_embeddings = nn.Embedding(args.vocab_size, args.hidden_size)
        self.position_embeddings = nn.Embedding(args.max_position_embeddings, args.hidden_size)
        self.token_type_embeddings = nn.Embedding(2, args.hidden_size)
        self.LayerNorm = nn.LayerNorm(args.hidden_size, eps=args.layer_norm_eps)
        self.freeze(keys=["position_ids"], recurse=False)

    def __call__(self, input_ids, token_type_ids):
        L = input_ids.shape[1]
        position_ids = self.position_ids[:, :L]
        inputs_embeds = self.word_embeddings(input_ids)
        token_type_embeddings = self.token_type_embeddings(token_type_ids)
        embeddings = inputs_embeds + token_type_embeddings
        position_embeddings = self.position_embeddings(position_ids)
        embeddings = embeddings + position_embeddings
        return self.LayerNorm(embeddings)


class BertSelfAttention(nn.Module):
    def __init__(self, args: ModelArgs):
        super().__init__()
        self.attention_head_size = args.attention_head_size
        self.query = nn.Linear(args.hidden_size, args.hidden_size)
        self.key = nn.Linear(args.hidden_size, args.hidden_size)
        self.value = nn.Linear(args.hidden_size, args.hidden_size)

    def __call__(self, hidden_states, attention_mask):
        B, L, _ = hidden_states.shape
        query_layer = self.query(hidden_states).reshape(B, L, -1, self.attention_head_size).swapaxes(1, 2)
        key_layer = self.key(hidden_states).reshape(B, L, -1, self.attention_head_size).swapaxes(1, 2)
        value_layer = self.value(hidden_states).reshape(B, L, -1, self.attention_head_size).swapaxes(1, 2)
        x = masked_attention(query_layer, key_layer, value_layer, 0.125, attention_mask).swapaxes(1, 2)
        return x.reshape(B, L, -1)


class BertSelfOutput(nn.Module):
    def __init__(self, args: ModelArgs):
        super().__init__()
        self.dense = nn.Linear(args.hidden_size, args.hidden_size)
        self.LayerNorm = nn.LayerNorm(args.hidden_size, eps=args.layer_norm_eps)

    def __call__(self, hidden_states, input_tensor):
        hidden_states = self.dense(hidden_states)
        return self.LayerNorm(hidden_states + input_tensor)


class BertIntermediate(nn.Module):
    def __init__(self, args: ModelArgs):
        super().__init__()
        self.dense = nn.Linear(args.hidden_size, args.intermediate_size)

    def __call__(self, hidden_states):
        hidden_states = self.dense(hidden_states)
        return nn.gelu(hidden_states)


class BertOutput(nn.Module):
    def __init__(self, args: ModelArgs):
        super().__init__()
        self.dense = nn.Linear(args.intermediate_size, args.hidden_size)
        self.LayerNorm = nn.LayerNorm(args.hidden_size, eps=args.layer_norm_eps)

    def __call__(self, hidden_states, input_tensor):
        hidden_states = self.dense(hidden_states)
        return self.LayerNorm(hidden_states + input_tensor)


class BertPooler(nn.Module):
    def __init__(self, args: ModelArgs):
        super().__init__()
        self.dense = nn.Linear(args.hidden_size, args.hidden_size)

    def __call__(self, hidden_states):
        first_token_tensor = hidden_states[:, 0]
        pooled_output = self.dense(first_token_tensor)
        return mx.tanh(pooled_output)


class BertAttention(nn.Module):
    def __init__(self, args: ModelArgs):
        super().__init__()
        self.self = BertSelfAttention(args)
        self.output = BertSelfOutput(args)

    def __call__(self, hidden_states, attention_mask):
        self_2 = self.self(hidden_states, attention_mask)
        return self.output(self_2, hidden_states)


class BertLayer(nn.Module):
    def __init__(self, args: ModelArgs):
        super().__init__()
        self.attention = BertAttention(args)
        self.intermediate = BertIntermediate(args)
        self.output = BertOutput(args)

    def __call__(self, hidden_states, attention_mask):
        attention = self.attention(hidden_states, attention_mask)
        return self.output(self.intermediate(attention), attention)


class BertEncoder(nn.Module):
    def __init__(self, args: ModelArgs):
        super().__init__()
        self.layer = [BertLayer(args) for _ in range(12)]

    def __call__(self, hidden_states, attention_mask):
        for layer_module in self.layer:
            hidden_states = layer_module(hidden_states, attention_mask)
        return hidden_states


class BertModel(nn.Module):
    """Tables limit the inputs. Values are not checked: MLX reads on where torch raises.

    Values of input_ids must be below 30522, the rows of embeddings.word_embeddings.weight (not checked).
    Values of token_type_ids must be below 2, the rows of embeddings.token_type_embeddings.weight (not checked).
    """

    def __init__(self, args: ModelArgs):
        super().__init__()
        self.embeddings = BertEmbeddings(args)
        self.encoder = BertEncoder(args)
        self.pooler = BertPooler(args)

    def __call__(self, input_ids, attention_mask, token_type_ids):
        check_inputs(
            {"input_ids": ("B", "L"), "attention_mask": ("B2", "L"), "token_type_ids": ("B", "L")},
            {"L": (1, 512)},
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
        )
        B = input_ids.shape[0]
        embedding_output = self.embeddings(input_ids, token_type_ids)
        x = attention_mask.astype(mx.bool_)[:B][:, None, None]
        encoder_outputs = self.encoder(embedding_output, x)
        pooled_output = self.pooler(encoder_outputs)
        return {"last_hidden_state": encoder_outputs, "pooler_output": pooled_output}


Model = BertModel


def load(path: str | Path = Path(__file__).parent) -> "Model":
    """The model with the weights beside this file (or in ``path``), ready to run."""
    path = Path(path)
    config = json.loads((path / "config.json").read_text())
    model = Model(ModelArgs.from_dict(config))
    weights = {}
    for file in sorted(path.glob("model*.safetensors")):
        weights.update(mx.load(str(file)))
    if quantization := config.get("quantization"):

        def settings(name, layer):
            return hasattr(layer, "to_quantized") and quantization.get(name, f"{name}.scales" in weights)

        sizes = {key: quantization[key] for key in ("group_size", "bits", "mode") if key in quantization}
        nn.quantize(model, **sizes, class_predicate=settings)
    model.load_weights(list(weights.items()))
    return model.eval()
