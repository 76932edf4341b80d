"""Held to tests/golden/spectrograms.safetensors: torchaudio's Kaldi filter bank and librosa's STFT."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from maavt.media.spectrogram import log_stft, spectrograms
from maavt.params import parse_params

ROOT = Path(__file__).parents[2]
GOLDEN = load_file(ROOT / "tests" / "golden" / "spectrograms.safetensors")
RECIPES = parse_params(yaml.safe_load((ROOT / "params.yaml").read_text())).shard.spectrogram


def test_filter_bank_of_ave_is_the_authors():
    made = spectrograms(GOLDEN["ave/waveform_16k"], RECIPES["ave"])
    assert made.dtype == np.float32 and made.shape == (224, 224)
    np.testing.assert_allclose(made[:223], GOLDEN["ave/fbank"], atol=1e-3, rtol=1e-4)
    assert not made[223].any()


def tiled(dataset: str) -> np.ndarray:
    recipe = RECIPES[dataset]
    return np.resize(GOLDEN[f"{dataset}/waveform_{recipe.sample_rate // 1000}k"], recipe.seconds * recipe.sample_rate)


@pytest.mark.parametrize("dataset", ["vggsound", "cremad"])
def test_log_stft_is_librosas(dataset):
    made = spectrograms(tiled(dataset), RECIPES[dataset])
    assert made.dtype == np.float32 and made.shape == (224, 224)
    np.testing.assert_allclose(made.T, GOLDEN[f"{dataset}/log_stft"], atol=1e-3, rtol=1e-4)


def test_a_window_of_a_longer_spectrogram_is_that_of_the_window_but_for_its_edges():
    waveform, hop = np.tile(tiled("vggsound"), 2), RECIPES["vggsound"].hop
    whole = spectrograms(waveform, RECIPES["vggsound"])
    window = spectrograms(waveform[100 * hop : 100 * hop + 5 * 16000], RECIPES["vggsound"])
    np.testing.assert_allclose(whole[101:323], window[1:-1], atol=1e-4)


@pytest.mark.parametrize("dataset", RECIPES)
def test_stretches_are_taken_each_on_its_own(dataset):
    sound = np.random.default_rng(0).standard_normal((2, 3 * RECIPES[dataset].sample_rate)).astype(np.float32)
    both = spectrograms(sound, RECIPES[dataset])
    for one, stretch in zip(both, sound, strict=True):
        np.testing.assert_array_equal(one, spectrograms(stretch, RECIPES[dataset]))


def test_silence_is_finite():
    silence = np.zeros(16000, np.float32)
    assert np.isfinite(spectrograms(silence, RECIPES["synth"])).all()
    assert np.isfinite(log_stft(silence, n_fft=446, hop=358)).all()
