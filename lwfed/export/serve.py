"""Serves a committed checkpoint: an object that embeds or classifies, with the preprocessing of the evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from lwfed.data.audio import log_mel, normalise_log_mel
from lwfed.data.inputs import InputSettings
from lwfed.data.pixels import as_seen
from lwfed.data.protocol import Signal, Waveform
from lwfed.data.series import checked, standardised
from lwfed.data.tokens import tokenize
from lwfed.data.transforms import normalise_pixels, square_pixels
from lwfed.models.build import load
from lwfed.models.multimodal import Multimodal
from lwfed.round.evaluate import embed_texts
from lwfed.round.runtime import pick_device
from lwfed.round.workbench import Workbench
from lwfed.run import runs
from lwfed.run.stage import Stage
from lwfed.store import paths
from lwfed.store.cache import BlockCache
from lwfed.store.checkpoint import Checkpoint
from lwfed.store.protocol import Store
from lwfed.types.errors import CheckpointError, DataError, SpecError

Floats = npt.NDArray[np.float32]


class Predictor:
    """A model with the weights of one checkpoint, in eval mode.

    Attributes:
        kind: `contrastive` or `supervised`.
        modalities: Its inputs, sorted.
        classes: Names of the data's classes; may be empty.
        digest: The checkpoint's digest.
        device: Its device.
    """

    def __init__(
        self, module: Multimodal, *, stage: Stage, inputs: InputSettings, classes: Sequence[str], digest: str
    ) -> None:
        self.kind: str = stage.plan.model.objective.kind
        self.modalities = module.modalities
        self.classes = tuple(classes)
        self.digest = digest
        self.device = next(module.parameters()).device
        self._module = module.eval()
        self._inputs = inputs
        self._batch_size = stage.plan.evaluation.batch_size
        self._width = stage.plan.model.projection.out

    def embed_images(self, images: Sequence[Image.Image]) -> Floats:
        """Embeds images of any size and mode, as people see them: [N, P], rows of length 1."""
        return self._embed("image", images)

    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """Embeds texts, truncated at the encoder's `max_tokens`: [N, P], rows of length 1."""
        return self._embed("text", texts)

    def embed_audios(self, audios: Sequence[tuple[Waveform, int]]) -> Floats:
        """Embeds sounds, each as mono samples and their rate per second: [N, P], rows of length 1."""
        return self._embed("audio", audios)

    def embed_series(self, modality: str, signals: Sequence[Signal]) -> Floats:
        """Embeds a sensor's signals, each of the encoder's shape [T, C]: [N, P], rows of length 1."""
        return self._embed(modality, signals)

    def classify(
        self,
        images: Sequence[Image.Image] | None = None,
        audios: Sequence[tuple[Waveform, int]] | None = None,
        texts: Sequence[str] | None = None,
        **series: Sequence[Signal],
    ) -> tuple[list[str], Floats]:
        """Classifies examples, given in all of the model's modalities.

        Args:
            images: N images.
            audios: N sounds, each as mono samples and their rate per second.
            texts: N texts.
            series: Sensor -> N signals, each of the encoder's shape [T, C].

        Returns:
            Names of the most probable classes, and probabilities [N, C].

        Raises:
            SpecError: The model is not supervised.
            DataError: A modality is missing, or the counts differ.
        """
        if self.kind != "supervised":
            raise SpecError("a contrastive model does not classify", remedy="use its embeddings")
        given: dict[str, Any] = {"image": images, "audio": audios, "text": texts, **series}
        columns: dict[str, Any] = {modality: given.get(modality) for modality in self.modalities}
        counts = {modality: None if items is None else len(items) for modality, items in columns.items()}
        if None in counts.values() or len(set(counts.values())) != 1:
            raise DataError(f"the counts of examples differ: {counts}", remedy="pass the same number for each modality")
        shares = [torch.zeros(0, len(self.classes))]
        with torch.inference_mode():
            for start in range(0, len(columns[self.modalities[0]]), self._batch_size):
                part = slice(start, start + self._batch_size)
                projected = {modality: self._project(modality, items[part]) for modality, items in columns.items()}
                shares.append(self._module.classify(projected).float().softmax(-1).cpu())
        probabilities = torch.cat(shares).numpy()
        return [self.classes[index] for index in probabilities.argmax(axis=1)], probabilities

    def _embed(self, modality: str, items: Sequence[Any]) -> Floats:
        if modality not in self.modalities:
            raise SpecError(f"the model has no {modality} encoder", remedy=f"use one of: {', '.join(self.modalities)}")
        rows = [torch.zeros(0, self._width)]
        with torch.inference_mode():
            if modality == "text" and len(items):  # texts of like length share a batch
                size, device = self._batch_size, self.device
                return embed_texts(self._module, items, inputs=self._inputs, batch_size=size, device=device).numpy()
            for start in range(0, len(items), self._batch_size):
                projected = self._project(modality, items[start : start + self._batch_size])
                rows.append(torch.nn.functional.normalize(projected.float(), dim=-1).cpu())
        return torch.cat(rows).numpy()

    def _project(self, modality: str, items: Sequence[Any]) -> Tensor:
        prepare = _PREPARE.get(modality, partial(_windows, modality=modality))
        return self._module.project(modality, prepare(items, self._inputs, self.device))


def load_predictor(uri: str, digest: str) -> Predictor:
    """Loads a committed checkpoint to embed or classify with; MLflow models call this function.

    Args:
        uri: `<store URI>#<stage key>`, see `lwfed.drive.trackers.uri_of`.
        digest: The checkpoint's digest, which must be the stage's; every tensor is checked as it is read.

    Returns:
        The predictor, on a GPU if there is one.

    Raises:
        SpecError: The URI has no stage key.
        CheckpointError: The stage is missing or has another digest, or an object is corrupted.
        DataError: The tokenizer is not available.
    """
    place, sign, key = uri.rpartition("#")
    if not (sign and place and key):
        raise SpecError(f"`{uri}` names no stage", remedy="write it as <store>#<stage key>")
    bench = Workbench.at(place)
    committed = bench.store.read_ref(paths.stage_checkpoint(key))
    if committed is None:
        raise CheckpointError(
            f"the stage {key[:12]} is not committed in {place}", remedy="restore the store, or use its new URI"
        )
    checkpoint = Checkpoint.from_values(committed)
    if checkpoint.digest != digest:
        raise CheckpointError(
            f"the stage {key[:12]} has the checkpoint {checkpoint.digest[:12]}, not {digest[:12]}",
            remedy="register the model again",
        )
    stage, device = bench.stage(key), pick_device("auto")
    tensors = bench.frozen(
        checkpoint, list(checkpoint.blocks), store=bench.store, cache=BlockCache(None), device=device
    )
    module = load(bench.skeleton(key), tensors).requires_grad_(False)
    classes = _classes(bench.store, key, made_by=str(committed.get("made_by", "")))
    if stage.num_classes is not None and len(classes) != stage.num_classes:
        raise CheckpointError(
            f"no run in {place} names the {stage.num_classes} classes of stage {key[:12]}", remedy="restore the run"
        )
    return Predictor(module, stage=stage, inputs=bench.inputs(stage), classes=classes, digest=digest)


def _classes(store: Store, key: str, *, made_by: str) -> tuple[str, ...]:
    """Returns the classes of a run with the stage: the run that made it, or another."""
    for run_id in (made_by, *runs.run_ids(store)):
        run = runs.find_run(store, run_id) if run_id else None
        if run is not None and any(item.key == key for item in run.stages):
            return tuple(run.data.classes)
    return ()


def _images(images: Sequence[Image.Image], inputs: InputSettings, device: torch.device) -> Tensor:
    pixels = np.stack([square_pixels(_as_seen(n, image), size=inputs.image_size) for n, image in enumerate(images)])
    return normalise_pixels(torch.from_numpy(pixels), inputs.image_normalise).to(device)


def _as_seen(number: int, image: Image.Image) -> Image.Image:
    try:
        return as_seen(image)
    except DataError as error:
        raise DataError(f"image {number} {error.problem}", remedy=error.remedy) from None


def _texts(texts: Sequence[str], inputs: InputSettings, device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in tokenize(texts, settings=inputs).items()}


def _audios(audios: Sequence[tuple[Waveform, int]], inputs: InputSettings, device: torch.device) -> Tensor:
    for samples, _ in audios:
        if np.ndim(samples) != 1 or not np.size(samples):
            raise DataError(
                f"a sound has the shape {np.shape(samples)}", remedy="pass mono samples: the mean over its channels"
            )
    spectrograms = [
        log_mel(np.asarray(samples, np.float32), rate=rate, num_mel_bins=inputs.num_mel_bins, frames=inputs.frames)
        for samples, rate in audios
    ]
    return normalise_log_mel(torch.from_numpy(np.stack(spectrograms)), inputs.audio_normalise).to(device)


def _windows(signals: Sequence[Signal], inputs: InputSettings, device: torch.device, *, modality: str) -> Tensor:
    named = {f"{modality} {n}": np.asarray(signal) for n, signal in enumerate(signals)}
    window = inputs.windows[modality]
    rows = [standardised(checked(signal, what=what), window=window, what=what) for what, signal in named.items()]
    return torch.from_numpy(np.stack(rows)).to(device)


_PREPARE: dict[str, Callable[[Sequence[Any], InputSettings, torch.device], Any]] = {
    "image": _images,
    "text": _texts,
    "audio": _audios,
}
"""Modality -> how its inputs are made; all others are sensors'."""
