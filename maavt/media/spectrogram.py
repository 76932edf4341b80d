"""Sound as a picture: log-mel filter banks (AVE) and log STFT magnitudes (VGGSound, CREMA-D), section C.

In NumPy, so that worker processes need no torch. Held to torchaudio's Kaldi and to librosa.
"""

from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from maavt.params import Spectrogram

WINDOW_MS = 25  # of the filter bank
LOWEST = 20.0  # Hz
EMPHASIS = np.float32(0.97)
SMALLEST = np.finfo(np.float32).eps  # below it a filter's energy is not told apart


def filter_bank(waveform: np.ndarray, sample_rate: int, *, bins: int, shift_ms: float) -> np.ndarray:
    """Kaldi's log-mel filter bank of stretches of sound (..., N), the mean of each removed -> (..., frames, bins).

    Hann windows of 25 ms, pre-emphasis 0.97, no dither, power spectrum, HTK's mel scale from 20 Hz up.
    """
    size, shift = sample_rate * WINDOW_MS // 1000, int(sample_rate * shift_ms * 0.001)
    padded = 1 << (size - 1).bit_length()
    window = padded * np.hanning(size).astype(np.float32)  # is 0 at a frame's first sample, which has none before it
    waveform = waveform - waveform.mean(-1, keepdims=True)
    means = sliding_window_view(waveform, size, axis=-1)[..., ::shift, :].mean(-1, keepdims=True)
    emphasised = waveform - EMPHASIS * np.concatenate([waveform[..., :1], waveform[..., :-1]], axis=-1)
    frames = sliding_window_view(emphasised, size, axis=-1)[..., ::shift, :] - (1 - EMPHASIS) * means
    frames *= window
    spectrum = np.fft.rfft(frames, padded, norm="forward")  # only with this norm does NumPy stay in float32
    squares = np.square(spectrum.view(np.float32))
    power = squares[..., ::2] + squares[..., 1::2]
    banks = power @ _mel_filters(bins, padded, sample_rate)
    return np.log(np.maximum(banks, SMALLEST, out=banks), out=banks)


@lru_cache
def _mel_filters(bins: int, padded: int, sample_rate: int) -> np.ndarray:
    """(padded // 2 + 1, bins) float32: triangles, equally wide and half overlapping on the mel scale."""

    def mel(frequency):
        return 1127 * np.log(1 + frequency / 700)

    edges = np.linspace(mel(LOWEST), mel(sample_rate / 2), bins + 2)
    places = mel(sample_rate / padded * np.arange(padded // 2))[:, None]
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    filters = np.minimum((places - left) / (centre - left), (right - places) / (right - centre)).clip(0)
    return np.pad(filters, ((0, 1), (0, 0))).astype(np.float32)  # Kaldi leaves out the highest frequency


def log_stft(waveform: np.ndarray, *, n_fft: int, hop: int) -> np.ndarray:
    """log(|STFT| + 1e-7) of sound (..., N), Hann window, centred, zero-padded -> (..., N // hop + 1, n_fft // 2 + 1).

    The transpose of librosa's: one row per frame, as in a filter bank.
    """
    edge = [(0, 0)] * (waveform.ndim - 1) + [(n_fft // 2, n_fft // 2)]
    frames = sliding_window_view(np.pad(waveform, edge), n_fft, axis=-1)[..., ::hop, :]
    window = n_fft * np.hanning(n_fft + 1)[:-1].astype(np.float32)
    return np.log(np.abs(np.fft.rfft(frames * window, norm="forward")) + np.float32(1e-7))  # norm: as above


def spectrograms(waveform: np.ndarray, recipe: Spectrogram) -> np.ndarray:
    """Stretches of sound (..., N) by a recipe -> (..., frames, bins) float32.

    The number of frames is what fits. A filter bank that is one frame short of `bins` gets a frame of zeros, as the
    authors do for AVE (223 -> 224).
    """
    if waveform.ndim > 1:  # one by one: what is worked on stays in the processor's cache
        return np.stack([spectrograms(stretch, recipe) for stretch in waveform])
    if recipe.kind == "stft":
        return log_stft(waveform, n_fft=recipe.n_fft, hop=recipe.hop)
    banks = filter_bank(waveform, recipe.sample_rate, bins=recipe.bins, shift_ms=recipe.shift_ms)
    if len(banks) == recipe.bins - 1:
        banks = np.pad(banks, [(0, 1), (0, 0)])
    return banks
