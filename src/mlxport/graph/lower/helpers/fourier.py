"""Short-time Fourier transforms."""

from __future__ import annotations

import mlx.core as mx


def centered_window(window, win_length, n_fft):
    """A window (ones if None) of ``win_length`` with zeros on both sides up to ``n_fft``."""
    window = mx.ones(win_length) if window is None else window
    left = (n_fft - win_length) // 2
    return mx.pad(window, (left, n_fft - win_length - left))


def stft(x, n_fft, hop_length=None, win_length=None, window=None, normalized=False, onesided=True):
    """Spectra of overlapping windows along the last axis: (..., frequencies, frames)."""
    hop_length = hop_length or n_fft // 4
    window = centered_window(window, win_length or n_fft, n_fft)
    starts = hop_length * mx.arange(1 + (x.shape[-1] - n_fft) // hop_length)
    frames = x[..., starts[:, None] + mx.arange(n_fft)] * window
    transform = mx.fft.rfft if onesided else mx.fft.fft
    return transform(frames, norm="ortho" if normalized else "backward").swapaxes(-1, -2)


def istft(
    spectra,
    n_fft,
    hop_length=None,
    win_length=None,
    window=None,
    center=True,
    normalized=False,
    onesided=True,
    length=None,
):
    """The signal with the given spectra (..., frequencies, frames): windows overlapped, added, divided by their sum."""
    hop_length = hop_length or n_fft // 4
    window = centered_window(window, win_length or n_fft, n_fft)
    norm = "ortho" if normalized else "backward"
    spectra = spectra.swapaxes(-1, -2)
    frames = mx.fft.irfft(spectra, n=n_fft, norm=norm) if onesided else mx.fft.ifft(spectra, norm=norm).real
    count = frames.shape[-2]
    total = n_fft + hop_length * (count - 1)
    places = hop_length * mx.arange(count)[:, None] + mx.arange(n_fft)
    signal = mx.zeros((*frames.shape[:-2], total)).at[..., places].add(frames * window)
    weight = mx.zeros(total).at[places].add(mx.broadcast_to(window * window, (count, n_fft)))
    start = n_fft // 2 if center else 0
    end = start + length if length is not None else total - start
    signal = signal[..., start:end] / weight[start:end]
    return mx.pad(signal, [(0, 0)] * (signal.ndim - 1) + [(0, max(0, end - total))])
