"""Sound as a picture: log-mel filter banks (AVE) and log STFT magnitudes (VGGSound, CREMA-D), section C."""

from functools import lru_cache

import numpy as np
import torch
from torchaudio.compliance.kaldi import fbank
from torchaudio.transforms import Spectrogram as Magnitudes

from maavt.params import Spectrogram


def filter_bank(waveform: np.ndarray, sample_rate: int, *, bins: int, shift_ms: float) -> np.ndarray:
    """Kaldi's log-mel filter bank of a stretch of sound (N,), its mean removed -> (frames, bins) float32.

    Hann windows of 25 ms, pre-emphasis 0.97, no dither, power spectrum, HTK's mel scale from 20 Hz up.
    """
    waveform = torch.from_numpy(waveform - waveform.mean())[None]
    return fbank(waveform, sample_frequency=sample_rate, htk_compat=True, use_energy=False, window_type="hanning",
                 num_mel_bins=bins, dither=0.0, frame_shift=shift_ms).numpy()


def log_stft(waveform: np.ndarray, *, n_fft: int, hop: int) -> np.ndarray:
    """log(|STFT| + 1e-7) of sound (N,), Hann window, centred, zero-padded -> (N // hop + 1, n_fft // 2 + 1) float32.

    The transpose of librosa's: one row per frame, as in a filter bank.
    """
    magnitudes = _magnitudes(n_fft, hop)(torch.from_numpy(waveform))  # (n_fft // 2 + 1, frames)
    return magnitudes.add_(1e-7).log_().T.contiguous().numpy()


@lru_cache
def _magnitudes(n_fft: int, hop: int) -> Magnitudes:
    return Magnitudes(n_fft, hop_length=hop, power=1.0, pad_mode="constant")


def spectrograms(waveform: np.ndarray, recipe: Spectrogram) -> np.ndarray:
    """Stretches of sound (..., N) by a recipe -> (..., frames, bins) float32.

    The number of frames is what fits. A filter bank that is one frame short of `bins` gets a frame of zeros, as the
    authors do for AVE (223 -> 224).
    """
    if waveform.ndim > 1:  # one by one: what is worked on stays in the processor's cache
        return np.stack([spectrograms(stretch, recipe) for stretch in waveform])
    with torch.inference_mode():
        if recipe.kind == "stft":
            return log_stft(waveform, n_fft=recipe.n_fft, hop=recipe.hop)
        banks = filter_bank(waveform, recipe.sample_rate, bins=recipe.bins, shift_ms=recipe.shift_ms)
    if len(banks) == recipe.bins - 1:
        banks = np.pad(banks, [(0, 1), (0, 0)])
    return banks


def nothing_heard(pairs: int, recipe: Spectrogram) -> np.ndarray:
    """What batches hold of pairs whose sound is absent: zeros (pairs, frames, bins) float16."""
    one = spectrograms(np.zeros(recipe.seconds * recipe.sample_rate, np.float32), recipe)
    return np.zeros((pairs, *one.shape), np.float16)
