"""What is served is the checkpoint that was named, and embeds as evaluation does."""

from __future__ import annotations

import io
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lwfed.data.batches import eval_batches
from lwfed.data.pixels import ORIENTATION
from lwfed.drive.trackers import uri_of
from lwfed.export.serve import Predictor, load_predictor
from lwfed.models.build import load
from lwfed.round.evaluate import Embedded, embed
from lwfed.round.workbench import Workbench
from lwfed.run.tasks import Place
from lwfed.store import paths
from lwfed.store.blocks import read_block
from lwfed.store.checkpoint import Checkpoint, read_checkpoint
from lwfed.store.manifest import block_key
from lwfed.types.errors import CheckpointError, DataError, SpecError
from tests.unit.steps import tiny_runs

Served = tuple[Workbench, dict[str, Any], str]


def _serve(values: dict[str, Any]) -> Served:
    bench, summary = tiny_runs.run(values)
    run = bench.store.read_ref(paths.run(summary["run_id"]))
    assert run is not None
    return bench, summary, run["stages"][-1]["key"]


@pytest.fixture(scope="module")
def contrastive(tmp_path_factory: pytest.TempPathFactory) -> Served:
    values = tiny_runs.spec("image", "text", "audio", store=tmp_path_factory.mktemp("store"))
    return _serve({**values, "evaluation": {"batch_size": 5}})


@pytest.fixture(scope="module")
def supervised(tmp_path_factory: pytest.TempPathFactory) -> Served:
    values = tiny_runs.spec("image", "audio", store=tmp_path_factory.mktemp("store"))
    values["model"]["objective"] = {"kind": "supervised", "hidden": 16}
    return _serve(values)


def _predictor(served: Served) -> Predictor:
    bench, summary, key = served
    return load_predictor(uri_of(bench.store.uri, key), summary["digest"])


def _checkpoint(served: Served) -> Checkpoint:
    bench, _, key = served
    checkpoint = read_checkpoint(bench.store, paths.stage_checkpoint(key))
    assert checkpoint is not None
    return checkpoint


def _evaluated(served: Served) -> Embedded:
    """Embeds the test data as evaluation does."""
    bench, _, key = served
    stage = bench.stage(key)
    tensors = {}
    for block in _checkpoint(served).blocks.values():
        tensors |= read_block(bench.store, block_key(block), block)
    module = load(bench.skeleton(key), tensors).eval()
    examples = bench.examples(stage, Place(), "test")
    batches = eval_batches(
        bench.data(stage, Place()),
        examples=examples,
        settings=bench.inputs(stage),
        batch_size=stage.plan.evaluation.batch_size,
        workers=0,
    )
    with torch.inference_mode(), closing(batches):
        return embed(
            module,
            batches,
            examples=examples,
            inputs=bench.inputs(stage),
            model=stage.plan.model,
            evaluation=stage.plan.evaluation,
            device=torch.device("cpu"),
        )


def test_it_embeds_as_evaluation_does(contrastive: Served) -> None:
    bench, _, key = contrastive
    stage, predictor, expected = bench.stage(key), _predictor(contrastive), _evaluated(contrastive)
    source, examples = bench.data(stage, Place()), bench.examples(stage, Place(), "test")
    assert predictor.modalities == ("audio", "image", "text") and predictor.kind == "contrastive"
    found = {
        "audio": predictor.embed_audios([source.waveform(example) for example in examples]),
        "image": predictor.embed_images([source.image(example) for example in examples]),
        "text": predictor.embed_texts([caption for example in examples for caption in example.captions]),
    }
    for modality, rows in found.items():
        assert rows.dtype == np.float32 and np.array_equal(rows, expected.of[modality].numpy())
    assert np.allclose(np.linalg.norm(found["image"], axis=1), 1, atol=1e-6)


def test_images_are_embedded_as_people_see_them(contrastive: Served) -> None:
    predictor = _predictor(contrastive)
    seen = np.random.default_rng(0).integers(0, 256, (8, 16), dtype=np.uint8)
    image = Image.fromarray(seen).convert("RGB")
    turned = image.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[ORIENTATION] = 6
    wide = Image.fromarray(seen.astype(np.uint16) * 257)
    clear = Image.new("RGBA", image.size, (9, 9, 9, 0))
    white = Image.new("RGB", image.size, "white")
    content = io.BytesIO()
    turned.save(content, "PNG", exif=turned.getexif())
    found = predictor.embed_images([image, Image.open(content), wide, white, clear])
    assert np.array_equal(found[1], found[0]) and np.array_equal(found[2], found[0])
    assert np.array_equal(found[4], found[3]) and not np.array_equal(found[3], found[0])
    with pytest.raises(DataError, match=r"image 1 has floats from 0 to 2"):
        predictor.embed_images([image, Image.fromarray(np.array([[0, 2]], np.float32))])


def test_it_classifies_as_was_reported(supervised: Served) -> None:
    bench, summary, key = supervised
    stage, predictor = bench.stage(key), _predictor(supervised)
    source, examples = bench.data(stage, Place()), bench.examples(stage, Place(), "test")
    labels, shares = predictor.classify(
        [source.image(example) for example in examples], [source.waveform(example) for example in examples]
    )
    assert predictor.kind == "supervised" and predictor.classes == source.classes
    assert shares.shape == (16, 5) and np.allclose(shares.sum(axis=1), 1, atol=1e-6)
    right = [label == source.classes[example.label or 0] for label, example in zip(labels, examples, strict=True)]
    assert np.mean(right) == pytest.approx(summary["metrics"]["test/accuracy"])
    assert np.array_equal(
        predictor.embed_audios([source.waveform(e) for e in examples]), _evaluated(supervised).of["audio"].numpy()
    )


def test_nothing_gives_nothing(contrastive: Served, supervised: Served) -> None:
    assert _predictor(contrastive).embed_texts([]).shape == (0, 16)
    labels, shares = _predictor(supervised).classify([], [])
    assert labels == [] and shares.shape == (0, 5)


def test_what_it_does_not_take_is_refused(contrastive: Served, supervised: Served) -> None:
    with pytest.raises(SpecError, match="no text encoder"):
        _predictor(supervised).embed_texts(["a circle"])
    with pytest.raises(SpecError, match="does not classify"):
        _predictor(contrastive).classify()
    with pytest.raises(DataError, match="the same number"):
        _predictor(supervised).classify([], None)
    with pytest.raises(DataError, match="mono"):
        _predictor(supervised).embed_audios([(np.zeros((2, 100), np.float32), 16_000)])


def test_another_checkpoint_is_refused(contrastive: Served) -> None:
    bench, summary, key = contrastive
    with pytest.raises(CheckpointError, match="has the checkpoint"):
        load_predictor(uri_of(bench.store.uri, key), "0" * 64)
    with pytest.raises(CheckpointError, match="has the checkpoint"):
        load_predictor(uri_of(bench.store.uri, key), summary["stages"][0]["digest"])
    with pytest.raises(CheckpointError, match="not committed"):
        load_predictor(uri_of(bench.store.uri, "f" * 64), summary["digest"])
    with pytest.raises(SpecError, match="names no stage"):
        load_predictor(bench.store.uri, summary["digest"])


def test_a_changed_tensor_is_refused(contrastive: Served, tmp_path: Path) -> None:
    bench, summary, key = contrastive
    path = bench.store.fetch(block_key(_checkpoint(contrastive).blocks["text.projection"]))
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        with pytest.raises(CheckpointError, match="digest"):
            load_predictor(uri_of(bench.store.uri, key), summary["digest"])
    finally:
        path.write_bytes(content)
    assert load_predictor(uri_of(bench.store.uri, key), summary["digest"]).digest == summary["digest"]
