"""Sound as a picture: log-mel filter banks (AVE) and log STFT magnitudes (VGGSound, CREMA-D), section C."""

import torch
from torchaudio.compliance import kaldi

from maavt.params import Spectrogram


def filter_bank(waveform: torch.Tensor, sample_rate: int, *, bins: int, shift_ms: float) -> torch.Tensor:
    """Kaldi's log-mel filter bank of one stretch of sound (N,), its mean removed -> (frames, bins) float32."""
    return kaldi.fbank(
        (waveform - waveform.mean())[None], sample_frequency=sample_rate, htk_compat=True, use_energy=False,
        window_type="hanning", num_mel_bins=bins, frame_shift=shift_ms, dither=0.0,
    )


def log_stft(waveform: torch.Tensor, *, n_fft: int, hop: int) -> torch.Tensor:
    """log(|STFT| + 1e-7) of (N,), Hann window, centred, zero-padded -> (n_fft // 2 + 1, frames) float32."""
    window = torch.hann_window(n_fft)
    spectrum = torch.stft(waveform, n_fft, hop, window=window, center=True, pad_mode="constant", return_complex=True)
    return (spectrum.abs() + 1e-7).log()


def spectrograms(waveform: torch.Tensor, recipe: Spectrogram) -> torch.Tensor:
    """One spectrogram (frames, bins) for every `recipe.seconds` of the waveform (N,) -> (pairs, frames, bins).

    The number of frames is what fits the stretch at the recipe's shift (with 25 ms windows, rounded to it), padded
    with one frame of zeros where that makes it `bins`, as the authors do for AVE (223 -> 224).
    """
    stretches = waveform.unfold(0, recipe.seconds * recipe.sample_rate, recipe.seconds * recipe.sample_rate)
    banks = [filter_bank(s, recipe.sample_rate, bins=recipe.bins, shift_ms=recipe.shift_ms) for s in stretches]
    result = torch.stack(banks)
    short = recipe.bins - result.shape[1]
    return torch.nn.functional.pad(result, (0, 0, 0, short)) if short == 1 else result
