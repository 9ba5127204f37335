from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from transformers import ASTFeatureExtractor

from lwfed.catalog.encoder import AUDIOSET
from lwfed.data.audio import log_mel, normalise_log_mel, resample


@pytest.mark.parametrize(("bins", "frames", "count"), [(128, 128, 12_000), (32, 72, 11_520), (64, 50, 32_000)])
def test_equals_transformers_feature_extractor(bins: int, frames: int, count: int) -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, count).astype(np.float32)
    samples[: count // 3] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        extractor = ASTFeatureExtractor(num_mel_bins=bins, max_length=frames)
    theirs = extractor(samples, sampling_rate=16_000, return_tensors="pt")["input_values"]
    spectrogram = torch.from_numpy(log_mel(samples, rate=16_000, num_mel_bins=bins, frames=frames))
    ours = normalise_log_mel(spectrogram, AUDIOSET)[None]
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_cutting_before_resampling_changes_nothing() -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, 44_100 * 2).astype(np.float32)
    short = log_mel(samples, rate=44_100, num_mel_bins=16, frames=50)
    whole = log_mel(resample(samples, rate=44_100), rate=16_000, num_mel_bins=16, frames=50)
    assert np.array_equal(short, whole)


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000])
def test_a_tone_keeps_its_place_at_any_rate(rate: int) -> None:
    samples = np.sin(2 * np.pi * 1000 * np.arange(rate) / rate).astype(np.float32)
    mel = log_mel(samples, rate=rate, num_mel_bins=32, frames=90)
    reference = log_mel(resample(samples, rate=rate), rate=16_000, num_mel_bins=32, frames=90)
    assert mel.mean(axis=0).argmax() == reference.mean(axis=0).argmax() == 10


def test_a_sound_shorter_than_a_window_is_one_frame() -> None:
    mel = log_mel(np.ones(10, dtype=np.float32), rate=16_000, num_mel_bins=16, frames=5)
    assert (mel.shape, mel.dtype) == ((5, 16), np.float32)
    assert np.isfinite(mel).all()
    assert not mel[1:].any()
