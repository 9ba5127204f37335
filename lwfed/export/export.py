"""Exports a committed checkpoint as a folder of plain timm and transformers models, usable without lwfed."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from lwfed import __version__
from lwfed.catalog.source import data_source
from lwfed.data import audio
from lwfed.data.inputs import InputSettings
from lwfed.data.series import EPSILON
from lwfed.data.tokens import BYTES, open_tokenizer
from lwfed.export import example as export_example
from lwfed.export.library import heads, to_library
from lwfed.round.workbench import Workbench
from lwfed.run import runs
from lwfed.run.stage import Stage
from lwfed.run.tasks import Place
from lwfed.spec.model import ModelSpec
from lwfed.store import paths
from lwfed.store.cache import BlockCache
from lwfed.store.checkpoint import Checkpoint, read_checkpoint
from lwfed.store.refs import read_object, read_record
from lwfed.types.canonical import readable
from lwfed.types.errors import CheckpointError, NotFoundError, SpecError
from lwfed.types.modalities import MODALITIES
from lwfed.types.places import place_error
from lwfed.types.records import RunRecord, RunSummary

MARKER = "lwfed.json"
"""The file that marks a folder as an export; written last."""
ENTRIES = (MARKER, "example.py", "README.md", "heads", *MODALITIES, "test")
"""All files and folders that an export may contain."""
_WRITING = ".lwfed-export-"


def export_run(
    run_id: str, folder: Path, *, bench: Workbench, stage: int | None = None, with_test_data: bool = False
) -> dict[str, Any]:
    """Writes a run's model as a folder that is usable without lwfed.

    timm reads `image/`, transformers reads `text/` and `audio/`, a class in `example.py` reads a sensor's folder, and a
    plain `nn.Sequential` reads `heads/*.safetensors`. `example.py` (also in README.md) loads all of it; `lwfed.json`
    describes its origin.

    Args:
        run_id: The run.
        folder: The folder: new, empty, or an earlier export, which is replaced once everything is written.
        bench: The process's workbench.
        stage: The stage to export, counted from 1; None: the last committed one.
        with_test_data: Also write the test split of the built-in shapes to `test/`, in COCO's captions format.

    Returns:
        `folder`, `run_id`, `stage`, `digest`, `metrics`, `modalities`, `nbytes` and `files` (relative paths, sorted).

    Raises:
        NotFoundError: The run or stage does not exist.
        CheckpointError: The stage is not committed, or an object is corrupted.
        SpecError: The folder contains other files, or the data are not the built-in ones.
        DataError: The tokenizer or the named weights no longer exist.
        DiskFullError, UnreachableError: The folder cannot be written.
    """
    run = runs.read_run(bench.store, run_id)
    number, key, checkpoint = _committed_stage(run, bench=bench, stage=stage)
    found = bench.stage(key)
    if with_test_data and not data_source(found.plan.data.source).built_in:
        raise SpecError(
            f"the test data of {run_id} are your own {found.plan.data.source} data, which lwfed does not copy",
            remedy="export without --with-test-data, and pass your captions and images to the example",
        )
    _refuse_other(folder)
    device = torch.device("cpu")
    tensors = bench.frozen(
        checkpoint, list(checkpoint.blocks), store=bench.store, cache=BlockCache(None), device=device
    )
    states = heads(found.plan.model, tensors)
    info = _info(run, number, checkpoint, stage=found, bench=bench, states=states)
    code = export_example.example(info)
    with replacing(folder) as new:
        _write_encoders(new, found.plan.model, tensors, inputs=bench.inputs(found))
        (new / "heads").mkdir()
        for head, state in states.items():
            plain = state if head == "fusion" else sequential(state)
            _write_tensors(new / "heads" / f"{head}.safetensors", plain)
        if with_test_data:
            _write_test_data(new / "test", stage=found, bench=bench)
        (new / "README.md").write_text(
            export_example.readme(info, code=code, with_test_data=with_test_data), encoding="utf-8"
        )
        (new / "example.py").write_text(code, encoding="utf-8")
        (new / MARKER).write_bytes(readable(info))
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        "folder": str(folder),
        **{name: info[name] for name in ("run_id", "stage", "digest", "metrics", "modalities")},
        "nbytes": sum(path.stat().st_size for path in files),
        "files": [path.relative_to(folder).as_posix() for path in files],
    }


def _committed_stage(run: RunRecord, *, bench: Workbench, stage: int | None) -> tuple[int, str, Checkpoint]:
    """Returns the number, key and checkpoint of a run's stage, or with None of the last committed one."""
    total = len(runs.plans_of(run))
    if stage is not None and not 1 <= stage <= total:
        raise NotFoundError(f"run {run.run_id} has no stage {stage}", remedy=f"name a stage from 1 to {total}")
    summary = read_record(bench.store, paths.summary(run.run_id), RunSummary)
    if stage is None and summary is not None and summary.status == "finished":
        stage = total
    for number in range(total, 0, -1) if stage is None else (stage,):
        key = runs.stage_key_of(run, number)
        checkpoint = None if key is None else read_checkpoint(bench.store, paths.stage_checkpoint(key))
        if key is not None and checkpoint is not None:
            return number, key, checkpoint
    what = "no stage" if stage is None else f"stage {stage}"
    raise CheckpointError(
        f"{what} of run {run.run_id} is {'' if stage is None else 'not '}committed",
        remedy=f"run it first: lwfed run --run-id {run.run_id}",
    )


def sequential(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames a head's tensors as in nn.Sequential: Linear, Dropout, BatchNorm1d, ReLU per hidden layer, or layers.

    Args:
        state: `hidden.0.linear.weight` ... `out.norm.running_mean` of a projection head, or `hidden.weight` ...
            `out.bias` of the prediction head (Linear, Dropout, ReLU, Linear).
    """
    depth = len({name.split(".")[1] for name in state if name.startswith("hidden.") and name.count(".") > 1})
    places = {"hidden": 0, "out": 3, "out.linear": 4 * depth, "out.norm": 4 * depth + 1}
    for i in range(depth):
        places |= {f"hidden.{i}.linear": 4 * i, f"hidden.{i}.norm": 4 * i + 2}
    split = {name: name.rpartition(".") for name in state}
    return {f"{places[layer]}.{rest}": state[name] for name, (layer, _, rest) in split.items()}


def _info(
    run: RunRecord,
    number: int,
    checkpoint: Checkpoint,
    *,
    stage: Stage,
    bench: Workbench,
    states: Mapping[str, Mapping[str, Tensor]],
) -> dict[str, Any]:
    model, plan = stage.plan.model, stage.plan
    record = read_object(bench.store, paths.stage_record(stage.key), metrics=dict) or {"metrics": {}}
    dropouts = dict.fromkeys(model.modalities, model.projection.dropout)
    if model.objective.kind == "supervised":
        dropouts["prediction"] = model.objective.dropout
    return {
        "format": 1,
        "lwfed": __version__,
        "run_id": run.run_id,
        "name": run.name,
        "strategy": run.strategy,
        "stage": number,
        "num_stages": plan.num_stages,
        "digest": checkpoint.digest,
        "metrics": record["metrics"],
        "data": {"source": run.data.source, "version": run.data.version},
        "modalities": list(model.modalities),
        "families": {m: encoder.family for m, encoder in model.encoders.items()},
        "blocks": dict(plan.depth),
        "classes": list(run.data.classes),
        "objective": model.objective.model_dump(mode="json"),
        "temperature": model.objective.temperature if model.objective.kind == "contrastive" else None,
        "heads": {name: {"widths": _widths(states[name]), "dropout": share} for name, share in dropouts.items()},
        "preprocessing": _preprocessing(model, bench.inputs(stage)),
        "batch_size": plan.evaluation.batch_size,
    }


def _widths(state: Mapping[str, Tensor]) -> list[int]:
    """Returns the widths of a head: of its input, and of each linear layer's output."""
    linear = {int(name.split(".")[0]): tensor for name, tensor in sequential(state).items() if tensor.ndim == 2}
    return [linear[0].shape[1], *(weight.shape[0] for _, weight in sorted(linear.items()))]


def _preprocessing(model: ModelSpec, inputs: InputSettings) -> dict[str, Any]:
    every: dict[str, dict[str, Any]] = {
        "image": {
            "image_size": inputs.image_size,
            "resize": "squash: the whole image to a square",
            "interpolation": "bilinear",
            "mean": list(inputs.image_normalise.mean),
            "std": list(inputs.image_normalise.std),
        },
        "text": {"tokenizer": inputs.tokenizer or BYTES, "max_tokens": inputs.max_tokens},
        "audio": {
            "sample_rate": audio.SAMPLE_RATE,
            "num_mel_bins": inputs.num_mel_bins,
            "frames": inputs.frames,
            "mean": inputs.audio_normalise.mean[0],
            "std": inputs.audio_normalise.std[0],
            "normalise": "(x - mean) / (2 * std)",
        },
    }
    for sensor, window in inputs.windows.items():
        every[sensor] = {**window._asdict(), "normalise": f"each axis: (x - mean) / (std + {EPSILON})"}
    return {m: every[m] for m in model.modalities}


def _write_encoders(folder: Path, model: ModelSpec, tensors: Mapping[str, Tensor], *, inputs: InputSettings) -> None:
    for modality, encoder in model.encoders.items():
        state, config = to_library(encoder, tensors, modality=modality)
        place = folder / modality
        place.mkdir()
        _write_tensors(place / "model.safetensors", state)
        if modality == "text":
            _write_tokenizer(place, inputs)
        if modality == "audio":
            _write_feature_extractor(place, inputs)
        (place / "config.json").write_bytes(readable(config))


def _write_tokenizer(folder: Path, inputs: InputSettings) -> None:
    """Saves the tokenizer so that it truncates at `max_tokens` and pads on the right by itself."""
    open_tokenizer(inputs.tokenizer).save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_bytes(readable({**config, "model_max_length": inputs.max_tokens, "padding_side": "right"}))


def _write_feature_extractor(folder: Path, inputs: InputSettings) -> None:
    from transformers import ASTFeatureExtractor

    ASTFeatureExtractor(
        sampling_rate=audio.SAMPLE_RATE,
        num_mel_bins=inputs.num_mel_bins,
        max_length=inputs.frames,
        mean=inputs.audio_normalise.mean[0],
        std=inputs.audio_normalise.std[0],
    ).save_pretrained(folder)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    path.write_bytes(save(dict(tensors), metadata={"format": "pt"}))


def _write_test_data(folder: Path, *, stage: Stage, bench: Workbench) -> None:
    """Writes the test split: images/*.png and captions.json in COCO's format, in the order of evaluation."""
    source = bench.data(stage, Place())
    (folder / "images").mkdir(parents=True)
    images: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    for number, example in enumerate(bench.examples(stage, Place(), "test"), start=1):
        picture, name = source.image(example), f"{example.id}.png"
        picture.save(folder / "images" / name)
        images.append({"id": number, "file_name": name, "width": picture.width, "height": picture.height})
        if example.label is not None:
            images[-1]["class"] = source.classes[example.label]
        for caption in example.captions:
            notes.append({"id": len(notes) + 1, "image_id": number, "caption": caption})
    (folder / "captions.json").write_bytes(readable({"images": images, "annotations": notes}))


def _refuse_other(folder: Path) -> None:
    """Raises SpecError if a folder contains anything but an earlier export."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise SpecError(f"{folder} is a file", remedy="name a folder")
    names = {path.name for path in folder.iterdir()}
    odd = sorted(name for name in names if name not in ENTRIES and not name.startswith(_WRITING))
    earlier = MARKER in names or any(name.startswith(_WRITING) for name in names)
    if odd or (names and not earlier):
        first = odd[0] if odd else min(names)
        raise SpecError(
            f"the folder {folder} is not empty: it contains {first}, which is not part of an earlier export",
            remedy="name another folder, or empty this one",
        )


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Yields a folder to write to, inside the target, which may be a mount; at the end, moves its entries up."""
    created = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=_WRITING, dir=folder, ignore_cleanup_errors=True) as name:
            new = Path(name)
            yield new
            for entry in ENTRIES:
                _remove(folder / entry)
            for entry in reversed(ENTRIES):
                if (new / entry).exists():
                    (new / entry).rename(folder / entry)
        for left in folder.glob(f"{_WRITING}*"):  # by a killed export
            shutil.rmtree(left, ignore_errors=True)
    except OSError as error:
        known = place_error(
            error,
            where=f"{folder} for the export",
            full="free some space, or name a folder elsewhere",
            closed="name a writable folder",
        )
        if known is None:
            raise
        raise known from error
    finally:
        if created and not (folder / MARKER).exists():
            shutil.rmtree(folder, ignore_errors=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
