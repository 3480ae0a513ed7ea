"""Models of many kinds in plain torch.nn, tiny: a maker, example inputs, and inputs of other sizes for each."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn


class ResBlock(nn.Module):
    """Residual block of a diffusion U-Net, conditioned on a time embedding."""

    def __init__(self, inputs, outputs, time):
        super().__init__()
        self.norm1 = nn.GroupNorm(4, inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time_emb_proj = nn.Linear(time, outputs)
        self.norm2 = nn.GroupNorm(4, outputs)
        self.dropout = nn.Dropout(0.1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x, temb):
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = hidden + self.time_emb_proj(F.silu(temb))[:, :, None, None]
        hidden = self.conv2(self.dropout(F.silu(self.norm2(hidden))))
        return self.conv_shortcut(x) + hidden


class Attention(nn.Module):
    def __init__(self, dim, context, heads):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(context, dim, bias=False)
        self.to_v = nn.Linear(context, dim, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim), nn.Dropout(0.1)])

    def forward(self, x, context=None):
        context = x if context is None else context
        q, k, v = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for y in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        for layer in self.to_out:
            x = layer(x)
        return x


class CrossBlock(nn.Module):
    def __init__(self, dim, context):
        super().__init__()
        self.norm = nn.GroupNorm(4, dim)
        self.proj_in = nn.Conv2d(dim, dim, 1)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.attn1 = Attention(dim, dim, 2)
        self.attn2 = Attention(dim, context, 2)
        self.ff = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.proj_out = nn.Conv2d(dim, dim, 1)

    def forward(self, x, context):
        batch, channels, height, width = x.shape
        hidden = self.proj_in(self.norm(x)).permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        hidden = self.attn1(self.norm1(hidden)) + hidden
        hidden = self.attn2(self.norm2(hidden), context) + hidden
        hidden = self.ff(self.norm3(hidden)) + hidden
        hidden = hidden.reshape(batch, height, width, channels).permute(0, 3, 1, 2)
        return self.proj_out(hidden) + x


def timestep_embedding(timesteps, dim):
    exponent = -math.log(10000) * torch.arange(dim // 2, dtype=torch.float32, device=timesteps.device) / (dim // 2)
    emb = timesteps[:, None].float() * exponent.exp()[None, :]
    return torch.cat([emb.cos(), emb.sin()], dim=-1)


class UNet2DCondition(nn.Module):
    def __init__(self, channels=8, context=12):
        super().__init__()
        self.channels = channels
        self.conv_in = nn.Conv2d(4, channels, 3, padding=1)
        self.time_embedding = nn.Sequential(nn.Linear(channels, 16), nn.SiLU(), nn.Linear(16, 16))
        self.down = nn.ModuleList([ResBlock(channels, channels, 16), ResBlock(channels, 2 * channels, 16)])
        self.downsample = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.mid = CrossBlock(2 * channels, context)
        self.up = nn.ModuleList([ResBlock(3 * channels, channels, 16), ResBlock(2 * channels, channels, 16)])
        self.conv_norm_out = nn.GroupNorm(4, channels)
        self.conv_out = nn.Conv2d(channels, 4, 3, padding=1)

    def forward(self, sample, timestep, encoder_hidden_states):
        temb = self.time_embedding(timestep_embedding(timestep, self.channels))
        sample = self.conv_in(sample)
        skips = [sample]
        sample = self.downsample(self.down[0](sample, temb))
        skips.append(sample)
        sample = self.mid(self.down[1](sample, temb), encoder_hidden_states)
        sample = self.up[0](torch.cat([sample, skips.pop()], dim=1), temb)
        sample = F.interpolate(sample, scale_factor=2.0, mode="nearest")
        sample = self.up[1](torch.cat([sample, skips.pop()], dim=1), temb)
        return {"sample": self.conv_out(F.silu(self.conv_norm_out(sample)))}


class AutoencoderKL(nn.Module):
    """Encoder to the moments of a Gaussian, decoder from its mode."""

    def __init__(self, width=8):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.GroupNorm(4, width), nn.SiLU(), nn.ZeroPad2d((0, 1, 0, 1)),
            nn.Conv2d(width, width, 3, stride=2), nn.SiLU(), nn.Conv2d(width, 8, 3, padding=1),
        )  # fmt: skip
        self.quant_conv = nn.Conv2d(8, 8, 1)
        self.post_quant_conv = nn.Conv2d(4, 4, 1)
        self.decoder = nn.Sequential(
            nn.Conv2d(4, width, 3, padding=1), nn.SiLU(), nn.Upsample(scale_factor=2, mode="nearest"),
            nn.Conv2d(width, 3, 3, padding=1),
        )  # fmt: skip

    def forward(self, x):
        mean, logvar = self.quant_conv(self.encoder(x)).chunk(2, dim=1)
        logvar = logvar.clamp(-30.0, 20.0)
        return self.decoder(self.post_quant_conv(mean)), mean, logvar


class DiTBlock(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(dim, dim, heads)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(approximate="tanh"), nn.Linear(4 * dim, dim))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def forward(self, x, c):
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate.unsqueeze(1) * self.attn(self.norm1(x) * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1))
        hidden = self.norm2(x) * (1 + scale_mlp.unsqueeze(1)) + shift_mlp.unsqueeze(1)
        return x + gate_mlp.unsqueeze(1) * self.mlp(hidden)


class DiT(nn.Module):
    def __init__(self, dim=16, patch=2, size=8):
        super().__init__()
        self.patch, self.grid = patch, size // patch
        self.x_embedder = nn.Conv2d(4, dim, patch, stride=patch)
        self.y_embedder = nn.Embedding(11, dim)
        self.t_embedder = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.register_buffer("pos_embed", torch.randn(1, self.grid**2, dim))
        self.blocks = nn.ModuleList([DiTBlock(dim, 2) for _ in range(3)])
        self.norm_final = nn.LayerNorm(dim, elementwise_affine=False)
        self.final = nn.Linear(dim, patch * patch * 4)

    def forward(self, x, t, y):
        x = self.x_embedder(x).flatten(2).transpose(1, 2) + self.pos_embed
        c = self.t_embedder(timestep_embedding(t, x.shape[-1])) + self.y_embedder(y)
        for block in self.blocks:
            x = block(x, c)
        x = self.final(self.norm_final(x)).reshape(x.shape[0], self.grid, self.grid, self.patch, self.patch, 4)
        return torch.einsum("nhwpqc->nchpwq", x).reshape(x.shape[0], 4, self.grid * self.patch, self.grid * self.patch)


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(1e-2 * torch.ones(dim))

    def forward(self, x):
        shortcut = x
        x = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        x = self.gamma * self.pwconv2(self.act(self.pwconv1(x)))
        return shortcut + x.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    def __init__(self, dims=(8, 16)):
        super().__init__()
        self.downsample_layers = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(3, dims[0], 4, stride=4), LayerNorm2d(dims[0])),
                nn.Sequential(LayerNorm2d(dims[0]), nn.Conv2d(dims[0], dims[1], 2, stride=2)),
            ]
        )
        self.stages = nn.ModuleList([nn.Sequential(*[ConvNeXtBlock(dim) for _ in range(2)]) for dim in dims])
        self.norm = nn.LayerNorm(dims[-1])
        self.head = nn.Linear(dims[-1], 5)

    def forward(self, x):
        for down, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(down(x))
        return self.head(self.norm(x.mean([-2, -1])))


class SqueezeExcite(nn.Module):
    def __init__(self, channels, reduced):
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, reduced, 1)
        self.conv_expand = nn.Conv2d(reduced, channels, 1)

    def forward(self, x):
        s = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.conv_expand(F.silu(self.conv_reduce(s))))


class MBConv(nn.Module):
    def __init__(self, inputs, outputs, expand, kernel, stride, act=nn.SiLU):
        super().__init__()
        middle = inputs * expand
        self.conv_pw = nn.Conv2d(inputs, middle, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(middle, eps=1e-3)
        self.act1 = act()
        self.conv_dw = nn.Conv2d(middle, middle, kernel, stride, kernel // 2, groups=middle, bias=False)
        self.bn2 = nn.BatchNorm2d(middle, eps=1e-3)
        self.act2 = act()
        self.se = SqueezeExcite(middle, 2)
        self.conv_pwl = nn.Conv2d(middle, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs, eps=1e-3)
        self.has_skip = stride == 1 and inputs == outputs

    def forward(self, x):
        shortcut = x
        x = self.act1(self.bn1(self.conv_pw(x)))
        x = self.se(self.act2(self.bn2(self.conv_dw(x))))
        x = self.bn3(self.conv_pwl(x))
        return x + shortcut if self.has_skip else x


class EfficientNet(nn.Module):
    def __init__(self, act=nn.SiLU):
        super().__init__()
        self.conv_stem = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.act = act()
        self.blocks = nn.Sequential(
            nn.Sequential(MBConv(8, 8, 2, 3, 1, act), MBConv(8, 8, 2, 3, 1, act)),
            nn.Sequential(MBConv(8, 12, 2, 5, 2, act)),
        )
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(12, 5))

    def forward(self, x):
        x = self.blocks(self.act(self.bn1(self.conv_stem(x))))
        return self.classifier(self.global_pool(x).flatten(1))


class UNet(nn.Module):
    """Segmentation: max pooling, transposed convolutions, skips."""

    def __init__(self):
        super().__init__()
        self.inc, self.down1, self.bottom = self.double(3, 8), self.double(8, 16), self.double(16, 16)
        self.pool = nn.MaxPool2d(2)
        self.up1, self.up2 = nn.ConvTranspose2d(16, 16, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)
        self.conv1, self.conv2 = self.double(32, 16), self.double(16, 8)
        self.outc = nn.Conv2d(8, 2, 1)

    @staticmethod
    def double(inputs, outputs):
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True),
        )  # fmt: skip

    def forward(self, x):
        x1 = self.inc(x)
        x2 = self.down1(self.pool(x1))
        x = self.bottom(self.pool(x2))
        x = self.conv1(torch.cat([x2, self.up1(x)], dim=1))
        x = self.conv2(torch.cat([x1, self.up2(x)], dim=1))
        return self.outc(x)


class Snake(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x):
        return x + (self.alpha + 1e-9).reciprocal() * torch.sin(self.alpha * x).pow(2)


class Vocoder(nn.Module):
    """HiFi-GAN with snake activations: weight norm, transposed convolutions, dilated residual blocks."""

    def __init__(self, width=16, rates=(4, 2)):
        super().__init__()
        norm = nn.utils.parametrizations.weight_norm
        self.conv_pre = norm(nn.Conv1d(8, width, 7, padding=3))
        self.ups = nn.ModuleList(
            norm(nn.ConvTranspose1d(width >> i, width >> (i + 1), 2 * r, r, padding=r // 2))
            for i, r in enumerate(rates)
        )
        self.acts = nn.ModuleList(Snake(width >> i) for i in range(len(rates)))
        self.resblocks = nn.ModuleList(
            nn.ModuleList(norm(nn.Conv1d(width >> i, width >> i, 3, padding=d, dilation=d)) for d in (1, 3))
            for i in range(1, len(rates) + 1)
        )
        self.conv_post = norm(nn.Conv1d(width >> len(rates), 1, 7, padding=3))

    def forward(self, mel):
        x = self.conv_pre(mel)
        for up, act, block in zip(self.ups, self.acts, self.resblocks, strict=True):
            x = up(act(x))
            for conv in block:
                x = x + conv(F.leaky_relu(x, 0.1))
        return torch.tanh(self.conv_post(F.leaky_relu(x)))


class WaveNet(nn.Module):
    def __init__(self, channels=8, layers=4):
        super().__init__()
        self.embed = nn.Embedding(16, channels)
        self.dilated = nn.ModuleList(nn.Conv1d(channels, 2 * channels, 2, dilation=2**i) for i in range(layers))
        self.skip = nn.ModuleList(nn.Conv1d(channels, channels, 1) for _ in range(layers))
        self.residual = nn.ModuleList(nn.Conv1d(channels, channels, 1) for _ in range(layers))
        self.end = nn.Conv1d(channels, 16, 1)

    def forward(self, ids):
        x = self.embed(ids).transpose(1, 2)
        total = 0
        for i, (dilated, skip, residual) in enumerate(zip(self.dilated, self.skip, self.residual, strict=True)):
            a, b = dilated(F.pad(x, (2**i, 0))).chunk(2, dim=1)
            gated = torch.tanh(a) * torch.sigmoid(b)
            total = total + skip(gated)
            x = x + residual(gated)
        return self.end(F.relu(total))


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 8, padding_idx=0)
        self.lstm = nn.LSTM(8, 6, num_layers=2, bidirectional=True, batch_first=True, dropout=0.1)
        self.hidden2tag = nn.Linear(12, 4)

    def forward(self, sentence):
        out, (hidden, cell) = self.lstm(self.embedding(sentence))
        return F.log_softmax(self.hidden2tag(out), dim=-1), hidden


class TNet(nn.Module):
    def __init__(self, k):
        super().__init__()
        self.k = k
        self.conv1, self.conv2 = nn.Conv1d(k, 8, 1), nn.Conv1d(8, 16, 1)
        self.bn1, self.bn2 = nn.BatchNorm1d(8), nn.BatchNorm1d(16)
        self.fc = nn.Linear(16, k * k)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = torch.max(F.relu(self.bn2(self.conv2(x))), 2)[0]
        return self.fc(x).view(-1, self.k, self.k) + torch.eye(self.k, device=x.device)


class PointNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stn = TNet(3)
        self.conv1, self.conv2 = nn.Conv1d(3, 8, 1), nn.Conv1d(8, 16, 1)
        self.bn = nn.BatchNorm1d(16)
        self.fc = nn.Linear(16, 4)

    def forward(self, points):
        x = torch.bmm(points.transpose(2, 1), self.stn(points)).transpose(2, 1)
        x = self.bn(self.conv2(F.relu(self.conv1(x))))
        return F.log_softmax(self.fc(torch.max(x, 2, keepdim=True)[0].view(-1, 16)), dim=1)


class GraphConv(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.lin = nn.Linear(inputs, outputs, bias=False)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x, edge_index):
        source, target = edge_index
        degree = x.new_zeros(x.shape[0]).index_add(0, target, x.new_ones(target.shape[0])) + 1
        norm = degree.rsqrt()
        x = self.lin(x)
        messages = x[source] * (norm[source] * norm[target])[:, None]
        return torch.zeros_like(x).index_add(0, target, messages) + x / degree[:, None] + self.bias


class GraphNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = GraphConv(5, 8), GraphConv(8, 3)

    def forward(self, x, edge_index):
        return self.conv2(F.relu(self.conv1(x, edge_index)), edge_index)


class Encoder(nn.Module):
    """torch's own transformer layers, with a causal mask."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu", norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoderLayer(16, 2, 32, batch_first=True)

    def forward(self, x, y):
        mask = nn.Transformer.generate_square_subsequent_mask(y.shape[1], device=y.device)
        return self.decoder(y, self.encoder(x), tgt_mask=mask)


class Quantizer(nn.Module):
    """A VQ autoencoder's bottleneck; torch.export itself hides a member that is called ``code``."""

    def __init__(self, dim=8, codes=40):
        super().__init__()
        self.encode, self.code = nn.Conv1d(dim, dim, 3, padding=1), nn.Embedding(codes, dim)
        self.decode = nn.ConvTranspose1d(dim, dim, 4, 2, 1, groups=2)

    def forward(self, x):
        z = self.encode(x).transpose(1, 2)
        nearest = torch.cdist(z, self.code.weight.expand(z.shape[0], -1, -1)).argmin(-1)
        chosen = z + (self.code(nearest) - z).detach()
        return self.decode(chosen.transpose(1, 2)), nearest, F.mse_loss(chosen, z)


class FourierOperator(nn.Module):
    """A layer of a Fourier neural operator: complex weights on the low frequencies."""

    def __init__(self, width=4, modes=5):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width, modes, modes, dtype=torch.complex64))
        self.mix, self.modes = nn.Conv2d(width, width, 1), modes

    def forward(self, x):
        low = (slice(None), slice(None), slice(self.modes), slice(self.modes))
        spectrum = torch.fft.rfft2(x)
        kept = torch.zeros_like(spectrum)
        kept[low] = torch.einsum("bixy,ioxy->boxy", spectrum[low], self.weight)
        return F.gelu(torch.fft.irfft2(kept, s=x.shape[-2:]) + self.mix(x))


class LocalAttention(nn.Module):
    """Blocks of a sequence that see themselves and the block before; the length is a multiple of theirs."""

    def __init__(self, dim=8, block=8):
        super().__init__()
        self.qkv, self.block = nn.Linear(dim, 3 * dim), block

    def forward(self, x):
        batch, length, dim = x.shape
        q, k, v = self.qkv(x).view(batch, length // self.block, self.block, 3, dim).unbind(3)
        k = torch.cat([F.pad(k, (0, 0, 0, 0, 1, 0))[:, :-1], k], 2)
        v = torch.cat([F.pad(v, (0, 0, 0, 0, 1, 0))[:, :-1], v], 2)
        scores = torch.einsum("bnid,bnjd->bnij", q, k) / dim**0.5
        i, j = torch.arange(self.block)[:, None], torch.arange(2 * self.block)[None] - self.block
        scores = scores.masked_fill((j > i) | (j < i - self.block), -1e9)
        return torch.einsum("bnij,bnjd->bnid", scores.softmax(-1), v).reshape(batch, length, dim)


def _edges(nodes, count):
    return torch.randint(0, nodes, (2, count))


r = torch.randn
# Name: maker, example inputs, inputs of other sizes.
ZOO = {
    "unet2d-condition": (
        UNet2DCondition, (r(2, 4, 8, 8), torch.tensor([1, 5]), r(2, 5, 12)),
        (r(3, 4, 12, 16), torch.tensor([1, 5, 9]), r(3, 7, 12)),
    ),
    "autoencoder-kl": (AutoencoderKL, (r(2, 3, 16, 16),), (r(3, 3, 24, 32),)),
    "dit": (DiT, (r(2, 4, 8, 8), torch.tensor([1, 5]), torch.tensor([1, 2])),
            (r(3, 4, 8, 8), torch.tensor([1, 5, 7]), torch.tensor([1, 2, 3]))),
    "convnext": (ConvNeXt, (r(2, 3, 32, 32),), (r(3, 3, 40, 48),)),
    "efficientnet": (EfficientNet, (r(2, 3, 32, 32),), (r(3, 3, 40, 48),)),
    "mobilenet": (lambda: EfficientNet(nn.Hardswish), (r(2, 3, 32, 32),), (r(3, 3, 40, 48),)),
    "unet": (UNet, (r(2, 3, 16, 16),), (r(3, 3, 24, 32),)),
    "vocoder": (Vocoder, (r(2, 8, 12),), (r(3, 8, 20),)),
    "wavenet": (WaveNet, (torch.randint(0, 16, (2, 20)),), (torch.randint(0, 16, (3, 31)),)),
    "tagger": (Tagger, (torch.randint(0, 20, (2, 5)),), (torch.randint(0, 20, (3, 5)),)),
    "pointnet": (PointNet, (r(2, 3, 10),), (r(3, 3, 17),)),
    "quantizer": (Quantizer, (r(2, 8, 20),), (r(3, 8, 33),)),
    "fourier-operator": (FourierOperator, (r(2, 4, 16, 16),), (r(3, 4, 20, 18),)),
    "local-attention": (LocalAttention, (r(2, 40, 8),), (r(3, 64, 8),)),
    "graph": (GraphNet, (r(6, 5), _edges(6, 9)), (r(8, 5), _edges(8, 13))),
    "transformer": (Encoder, (r(2, 5, 16), r(2, 4, 16)), (r(3, 6, 16), r(3, 7, 16))),
}  # fmt: skip
