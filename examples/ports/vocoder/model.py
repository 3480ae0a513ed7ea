"""DecoderBlock in MLX."""

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


@dataclass
class ModelArgs:
    model_type: str = "vocoder"

    @classmethod
    def from_dict(cls, params: dict) -> "ModelArgs":
        names = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in params.items() if key in names})


class Snake(nn.Module):
    def __init__(self):
        super().__init__()
        self.alpha = mx.zeros((1, 64, 1))

    def __call__(self, x):
        mul = mx.reciprocal(self.alpha + 1e-09) * mx.square(mx.sin(self.alpha * x))
        return x + mul


class Snake2(nn.Module):
    def __init__(self):
        super().__init__()
        self.alpha = mx.zeros((1, 32, 1))

    def __call__(self, x):
        x_2 = mx.reciprocal(self.alpha + 1e-09).reshape(32)
        return x + x_2 * mx.square(mx.sin(self.alpha.reshape(32) * x))


class ResidualUnit(nn.Module):
    def __init__(self, dilation, pad):
        super().__init__()
        self.pad = pad
        self.snake1 = Snake2()
        self.conv1 = nn.Conv1d(32, 32, 7, dilation=dilation, groups=2)
        self.snake2 = Snake2()
        self.conv2 = nn.Conv1d(32, 32, 1)

    def __call__(self, x):
        hidden = self.conv1(mx.pad(self.snake1(x), [(0, 0), (self.pad, self.pad), (0, 0)], mode="reflect"))
        return x + self.conv2(self.snake2(hidden))


class DecoderBlock(nn.Module):
    def __init__(self, args: ModelArgs):
        super().__init__()
        self.snake = Snake()
        self.upsample = nn.ConvTranspose1d(64, 32, 8, stride=4, padding=2)
        self.units = [
            ResidualUnit(dilation=1, pad=3),
            ResidualUnit(dilation=3, pad=9),
            ResidualUnit(dilation=9, pad=27),
        ]

    def __call__(self, x):
        check_inputs({"x": ("B", 64, "L")}, {"L": (7, None)}, x=x)
        x = self.upsample(self.snake(x).transpose(0, 2, 1))
        for unit in self.units[:2]:
            x = unit(x)
        return self.units[2](x).transpose(0, 2, 1)


Model = DecoderBlock


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
