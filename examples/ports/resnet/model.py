"""ResNetForImageClassification in MLX."""

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
    model_type: str = "resnet"
    num_channels: int = 3
    embedding_size: int = 64

    @classmethod
    def from_dict(cls, params: dict) -> "ModelArgs":
        names = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in params.items() if key in names})


class ResNetConvLayer(nn.Module):
    def __init__(self, args: ModelArgs):
        super().__init__()
        self.convolution = nn.Conv2d(args.num_channels, args.embedding_size, 7, stride=2, padding=3, bias=False)
        self.normalization = nn.BatchNorm(args.embedding_size)

    def __call__(self, hidden_states):
        hidden_states = self.convolution(hidden_states.transpose(0, 2, 3, 1))
        hidden_states = self.normalization(hidden_states)
        return nn.relu(hidden_states)


class ResNetConvLayer2(nn.Module):
    def __init__(self, in_channels, out_channels, stride):
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.normalization = nn.BatchNorm(out_channels)

    def __call__(self, hidden_states):
        hidden_states = self.convolution(hidden_states)
        hidden_states = self.normalization(hidden_states)
        return nn.relu(hidden_states)


class ResNetConvLayer3(nn.Module):
    def __init__(self, in_channels):
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, in_channels, 3, padding=1, bias=False)
        self.normalization = nn.BatchNorm(in_channels)

    def __call__(self, hidden_states):
        hidden_states = self.convolution(hidden_states)
        return self.normalization(hidden_states)


class ResNetShortCut(nn.Module):
    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, out_channels, 1, stride=2, bias=False)
        self.normalization = nn.BatchNorm(out_channels)

    def __call__(self, input):
        hidden_state = self.convolution(input)
        return self.normalization(hidden_state)


class ResNetEmbeddings(nn.Module):
    def __init__(self, args: ModelArgs):
        super().__init__()
        self.embedder = ResNetConvLayer(args)

    def __call__(self, pixel_values):
        embedding = self.embedder(pixel_values)
        return nn.MaxPool2d(3, stride=2, padding=1)(embedding)


class ResNetBasicLayer(nn.Module):
    def __init__(self, in_channels):
        super().__init__()
        self.layer = [
            ResNetConvLayer2(in_channels=in_channels, out_channels=in_channels, stride=1),
            ResNetConvLayer3(in_channels=in_channels),
        ]

    def __call__(self, hidden_state):
        x = hidden_state
        for layer_module in self.layer:
            x = layer_module(x)
        hidden_state = x + hidden_state
        return nn.relu(hidden_state)


class ResNetBasicLayer2(nn.Module):
    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.shortcut = ResNetShortCut(in_channels=in_channels, out_channels=out_channels)
        self.layer = [
            ResNetConvLayer2(in_channels=in_channels, out_channels=out_channels, stride=2),
            ResNetConvLayer3(in_channels=out_channels),
        ]

    def __call__(self, hidden_state):
        x = hidden_state
        for layer_module in self.layer:
            x = layer_module(x)
        residual = self.shortcut(hidden_state)
        hidden_state = x + residual
        return nn.relu(hidden_state)


class ResNetStage(nn.Module):
    def __init__(self, args: ModelArgs):
        super().__init__()
        self.layers = [ResNetBasicLayer(in_channels=args.embedding_size) for _ in range(2)]

    def __call__(self, input):
        x = input
        for layer in self.layers:
            x = layer(x)
        return x


class ResNetStage2(nn.Module):
    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.layers = [
            ResNetBasicLayer2(in_channels=in_channels, out_channels=out_channels),
            ResNetBasicLayer(in_channels=out_channels),
        ]

    def __call__(self, input):
        x = input
        for layer in self.layers:
            x = layer(x)
        return x


class ResNetEncoder(nn.Module):
    def __init__(self, args: ModelArgs):
        super().__init__()
        self.stages = [
            ResNetStage(args),
            ResNetStage2(in_channels=args.embedding_size, out_channels=128),
            ResNetStage2(in_channels=128, out_channels=256),
            ResNetStage2(in_channels=256, out_channels=512),
        ]

    def __call__(self, hidden_state):
        input = hidden_state
        for stage in self.stages:
            input = stage(input)
        return input


class ResNetModel(nn.Module):
    def __init__(self, args: ModelArgs):
        super().__init__()
        self.embedder = ResNetEmbeddings(args)
        self.encoder = ResNetEncoder(args)

    def __call__(self, pixel_values):
        embedding_output = self.embedder(pixel_values)
        encoder_outputs = self.encoder(embedding_output)
        return encoder_outputs.mean(axis=[1, 2], keepdims=True)


class ResNetForImageClassification(nn.Module):
    def __init__(self, args: ModelArgs):
        super().__init__()
        self.resnet = ResNetModel(args)
        self.classifier = [nn.Identity(), nn.Linear(512, 2)]

    def __call__(self, pixel_values):
        check_inputs({"pixel_values": ("B", 3, "H", "W")}, pixel_values=pixel_values)
        outputs = self.resnet(pixel_values)
        x = outputs.reshape(-1, 512)
        logits = self.classifier[1](x)
        return {"logits": logits}


Model = ResNetForImageClassification


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
