"""Log-mel spectrograms for AST, computed from samples without torchaudio and on one thread.

Equal to transformers' ASTFeatureExtractor (which is Kaldi's fbank) up to rounding. All frames are computed at once and
without BLAS, so results depend neither on the number of threads nor on whether torchaudio is installed.
"""

from __future__ import annotations

import math
import warnings
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lwfed.catalog.encoder import Normalise
from lwfed.data.protocol import Waveform

if TYPE_CHECKING:  # scipy takes more than a second to import, and only sounds need it
    from scipy.sparse import csr_array

SAMPLE_RATE = 16_000
WINDOW, HOP, FFT = 400, 160, 512
PREEMPHASIS = 0.97
FLOOR = 1.192092955078125e-07


def log_mel(samples: Waveform, *, rate: int, num_mel_bins: int, frames: int) -> npt.NDArray[np.float32]:
    """Computes the log-mel spectrogram of a sound; short sounds are padded with zeros, long ones truncated.

    Args:
        samples: Mono samples [N].
        rate: Samples per second; rates other than 16 kHz are resampled.
        num_mel_bins: M.
        frames: F, each of 10 ms.

    Returns:
        [F, M], not yet normalised.
    """
    needed = WINDOW + HOP * (frames - 1)
    samples = resample(samples[: math.ceil((needed / SAMPLE_RATE + 0.1) * rate)], rate=rate)[:needed]
    if len(samples) < WINDOW:
        samples = np.pad(samples, (0, WINDOW - len(samples)))
    framed = np.lib.stride_tricks.sliding_window_view(samples.astype(np.float64), WINDOW)[::HOP]
    framed = framed - framed.mean(axis=1, keepdims=True)
    previous = np.concatenate([framed[:, :1], framed[:, :-1]], axis=1)
    power = np.abs(np.fft.rfft((framed - PREEMPHASIS * previous) * np.hanning(WINDOW), FFT)) ** 2
    mel = (_filters(num_mel_bins) @ power.T).T
    out = np.zeros((frames, num_mel_bins), dtype=np.float32)
    out[: len(mel)] = np.log(np.maximum(mel, FLOOR))
    return out


def normalise_log_mel(spectrogram: Tensor, normalise: Normalise) -> Tensor:
    """Normalises log-mels as in AST's training: by the mean and twice the standard deviation."""
    return (spectrogram - normalise.mean[0]) / (2 * normalise.std[0])


def resample(samples: Waveform, *, rate: int) -> Waveform:
    """Resamples to 16 kHz with a polyphase filter.

    Args:
        samples: Mono samples [N].
        rate: Samples per second.
    """
    if rate == SAMPLE_RATE:
        return samples
    from scipy.signal import resample_poly

    common = math.gcd(rate, SAMPLE_RATE)
    return np.asarray(resample_poly(samples, SAMPLE_RATE // common, rate // common), dtype=np.float32)


@lru_cache(maxsize=4)
def _filters(num_mel_bins: int) -> csr_array:
    from scipy.sparse import csr_array
    from transformers.audio_utils import mel_filter_bank

    with warnings.catch_warnings():
        # AST's 128 bins are so narrow that one is empty; transformers warns about it each time.
        warnings.filterwarnings("ignore", message="At least one mel filter has all zero values")
        filters = mel_filter_bank(
            num_frequency_bins=FFT // 2 + 1,
            num_mel_filters=num_mel_bins,
            min_frequency=20,
            max_frequency=SAMPLE_RATE // 2,
            sampling_rate=SAMPLE_RATE,
            norm=None,
            mel_scale="kaldi",
            triangularize_in_mel_space=True,
        )
    return csr_array(filters.T)
