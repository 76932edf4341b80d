"""Held to tests/golden/spectrograms.safetensors: torchaudio's Kaldi filter bank and librosa's STFT."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from maavt.params import Spectrogram
from maavt.spectrogram import filter_bank, log_stft, spectrograms

GOLDEN = load_file(Path(__file__).parent / "golden" / "spectrograms.safetensors")


def test_filter_bank_of_ave_is_the_authors():
    made = filter_bank(GOLDEN["ave/waveform_16k"], 16000, bins=224, shift_ms=4.4)
    torch.testing.assert_close(made, GOLDEN["ave/fbank"], atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("dataset, rate, seconds, n_fft, hop", [("vggsound", 16000, 5, 446, 358),
                                                              ("cremad", 22050, 3, 447, 296)])
def test_log_stft_is_librosas(dataset, rate, seconds, n_fft, hop):
    waveform = GOLDEN[f"{dataset}/waveform_{rate // 1000}k"]
    tiled = waveform.repeat(-(-seconds * rate // len(waveform)))[: seconds * rate]
    torch.testing.assert_close(log_stft(tiled, n_fft=n_fft, hop=hop), GOLDEN[f"{dataset}/log_stft"], atol=1e-3,
                               rtol=1e-4)


def recipe(**changes) -> Spectrogram:
    return Spectrogram(**{**dict(kind="fbank", clip_seconds=3, sample_rate=16000, seconds=1, bins=98, shift_ms=10.0),
                          **changes})


def test_every_second_has_its_own_spectrogram():
    waveform = torch.cat([torch.zeros(16000), torch.sin(torch.arange(32000) * 0.3)])
    made = spectrograms(waveform, recipe())
    assert made.shape == (3, 98, 98)
    assert made[0].max() < made[1].max() - 5


def test_the_papers_setting_of_ave_gives_224_by_224():
    assert spectrograms(torch.randn(16000), recipe(bins=224, shift_ms=4.4)).shape == (1, 224, 224)
