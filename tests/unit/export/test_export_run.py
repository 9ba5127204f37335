"""An export is used without lwfed, and gives what was reported."""

from __future__ import annotations

import errno
import io
import json
import runpy
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from lwfed.catalog.encoder import AUDIOSET, HALF
from lwfed.data.audio import log_mel, normalise_log_mel
from lwfed.data.inputs import InputSettings
from lwfed.data.pixels import ORIENTATION
from lwfed.data.tokens import tokenize
from lwfed.data.transforms import normalise_pixels, square_pixels
from lwfed.drive.trackers import uri_of
from lwfed.export.export import export_run, replacing, sequential
from lwfed.export.serve import Predictor, load_predictor
from lwfed.round.workbench import Workbench
from lwfed.types.errors import (
    CheckpointError,
    DiskFullError,
    LwfedError,
    NotFoundError,
    SpecError,
    UnreachableError,
)
from tests.tiny import ENCODERS, run_tiny
from tests.unit.steps import tiny_runs

ALONE = """
import numpy, runpy, sys
sys.modules["lwfed"] = None  # an import of it would fail
values = runpy.run_path(sys.argv.pop(1))
numpy.savez("found.npz", images=values["images"].numpy(), texts=values["texts"].numpy())
"""

PAIR = ("export", "again")

Run = tuple[Workbench, dict[str, Any]]


@pytest.fixture(scope="module")
def retrieval(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return tiny_runs.run(tiny_runs.spec("image", "text", store=tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def exported(retrieval: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    bench, summary = retrieval
    folder = tmp_path_factory.mktemp("exports") / "new" / "export"
    export_run(summary["run_id"], folder, bench=bench, with_test_data=True)
    return folder


def _recall(line: str) -> float:
    assert line.startswith("text-to-image Recall@1: ")
    return float(line.split(": ")[1])


def _alone(folder: Path, *, cwd: Path) -> tuple[str, dict[str, np.ndarray]]:
    """Runs the example in a fresh Python without lwfed; returns its last line and its tensors."""
    command = [sys.executable, "-I", "-c", ALONE, str(folder / "example.py")]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1], dict(np.load(cwd / "found.npz"))


def _here(folder: Path, *arguments: Path, patch: pytest.MonkeyPatch) -> tuple[str, dict[str, Any]]:
    """Runs the example in this process; returns its last line and its variables."""
    patch.setattr(sys, "argv", ["example.py", *map(str, arguments)])
    printed = io.StringIO()
    with torch.no_grad(), torch.random.fork_rng(), redirect_stdout(printed):
        values = runpy.run_path(str(folder / "example.py"))
    return printed.getvalue().strip().splitlines()[-1], values


def _misused(folder: Path, *arguments: Path, patch: pytest.MonkeyPatch, usage: str) -> None:
    """Runs the example with arguments that it does not take: it prints its usage alone, and exits with 2."""
    patch.setattr(sys, "argv", ["example.py", *map(str, arguments)])
    told = io.StringIO()
    with torch.no_grad(), redirect_stderr(told), pytest.raises(SystemExit) as ended:
        runpy.run_path(str(folder / "example.py"))
    assert ended.value.code == 2 and told.getvalue().endswith(f"Usage: python example.py {usage}\n")
    assert told.getvalue().count("\n") == 1


def _predictor(run: Run) -> Predictor:
    bench, summary = run
    stages = bench.store.read_ref(f"runs/{summary['run_id']}/run.json")["stages"]
    return load_predictor(uri_of(bench.store.uri, stages[-1]["key"]), summary["digest"])


@pytest.mark.slow
def test_the_example_reproduces_the_reported_recall(retrieval: Run, exported: Path, tmp_path: Path) -> None:
    line, found = _alone(exported, cwd=tmp_path)
    _, summary = retrieval
    assert _recall(line) == pytest.approx(summary["metrics"]["test/t2i/R@1"], abs=1e-6)
    predictor = _predictor(retrieval)
    coco = json.loads((exported / "test/captions.json").read_text())
    images = [Image.open(exported / "test/images" / item["file_name"]) for item in coco["images"]]
    np.testing.assert_allclose(found["images"], predictor.embed_images(images), atol=1e-6)
    texts = [note["caption"] for note in coco["annotations"]]
    assert len(texts) == 5 * len(images) == 80
    np.testing.assert_allclose(found["texts"], predictor.embed_texts(texts), atol=1e-6)


@pytest.mark.parametrize("encoders", ["resnet-mobilebert", "resnet-bert"])
def test_the_example_of_encoders_that_grow_wider(
    encoders: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first stage an adapter is part of the exported head; served and exported models agree in both."""
    done = run_tiny(tmp_path / "store", *ENCODERS[encoders], "stages.rounds=[1, 1]", "store.keep_rounds=0")
    for stage, width in ((1, 8), (2, 12)):
        folder = tmp_path / f"export-{stage}"
        export_run(done.run.run_id, folder, bench=done.bench, stage=stage, with_test_data=True)
        assert json.loads((folder / "lwfed.json").read_text())["heads"]["image"]["widths"][0] == width
        line, values = _here(folder, patch=monkeypatch)
        record = done.summary["stages"][stage - 1]
        assert _recall(line) == pytest.approx(record["metrics"]["test/t2i/R@1"], abs=1e-6)
        predictor = load_predictor(uri_of(done.store.uri, done.keys[stage - 1]), record["digest"])
        coco = json.loads((folder / "test/captions.json").read_text())
        images = [Image.open(folder / "test/images" / item["file_name"]) for item in coco["images"]]
        np.testing.assert_allclose(values["images"], predictor.embed_images(images), atol=1e-5)
        texts = [note["caption"] for note in coco["annotations"]]
        np.testing.assert_allclose(values["texts"], predictor.embed_texts(texts), atol=1e-5)


def test_the_example_takes_the_users_own_images(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_coco(tmp_path / "coco", exported / "test")
    values = tiny_runs.spec("image", "text", store=tmp_path / "store")
    run = tiny_runs.run({**values, "data": {"source": "coco", "root": str(tmp_path / "coco"), "workers": 0}})
    bench, summary = run
    with pytest.raises(SpecError, match="does not copy"):
        export_run(summary["run_id"], tmp_path / "export", bench=bench, with_test_data=True)
    export_run(summary["run_id"], tmp_path / "export", bench=bench)
    captions = tmp_path / "coco/annotations/captions_val2017.json"
    line, _ = _here(tmp_path / "export", captions, tmp_path / "coco/val2017", patch=monkeypatch)
    assert _recall(line) == pytest.approx(summary["metrics"]["test/t2i/R@1"], abs=1e-6)
    for arguments in ((), (captions,), (captions, captions, captions)):  # there is no test data to read instead
        _misused(tmp_path / "export", *arguments, patch=monkeypatch, usage="[CAPTIONS.json IMAGES_FOLDER]")


def test_the_example_of_a_classifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import soundfile

    values = tiny_runs.spec("image", "audio", store=tmp_path / "store")
    values["model"]["objective"] = {"kind": "supervised", "hidden": 16}
    run = tiny_runs.run(values)
    bench, summary = run
    folder = tmp_path / "export"
    export_run(summary["run_id"], folder, bench=bench, with_test_data=True)
    info = json.loads((folder / "lwfed.json").read_text())
    assert info["heads"]["prediction"] == {"widths": [32, 16, 5], "dropout": 0.1} and info["temperature"] is None
    samples = np.random.default_rng(0).normal(0, 0.1, 9000).astype(np.float32)
    soundfile.write(tmp_path / "sound.wav", samples, 16_000, subtype="FLOAT")
    with Image.open(folder / "test/images/test-000003.png") as scene:  # with a hidden colour, and lying on its side
        scene.putalpha(Image.linear_gradient("L").resize(scene.size))
        scene.getexif()[ORIENTATION] = 6
        picture = tmp_path / "picture.png"
        scene.save(picture, exif=scene.getexif())
    line, found = _here(folder, tmp_path / "sound.wav", picture, patch=monkeypatch)
    names, shares = _predictor(run).classify([Image.open(picture)], [(samples, 16_000)])
    np.testing.assert_allclose(
        found["shares"].cpu(), shares[0], atol=1e-4
    )  # transformers computes log-mels in another order
    assert line.split(": ")[0] == names[0]
    for arguments in ((), (picture,), (picture, picture, picture)):
        _misused(folder, *arguments, patch=monkeypatch, usage="SOUND.wav IMAGE")
    _check_feature_extractor(folder / "audio", samples)


def _check_feature_extractor(folder: Path, samples: np.ndarray) -> None:
    from transformers import AutoFeatureExtractor

    theirs = AutoFeatureExtractor.from_pretrained(folder)(samples, sampling_rate=16_000, return_tensors="pt")
    ours = normalise_log_mel(torch.from_numpy(log_mel(samples, rate=16_000, num_mel_bins=16, frames=72)), AUDIOSET)
    torch.testing.assert_close(theirs["input_values"][0], ours, atol=1e-4, rtol=0)


def _write_coco(root: Path, test: Path) -> None:
    """Writes captioned images of several shapes in COCO's layout; names, ids and captions are in no order."""
    coco = json.loads((test / "captions.json").read_text())
    (root / "annotations").mkdir(parents=True)
    for folder in ("train2017", "val2017"):
        (root / folder).mkdir()
        images, notes = [], []
        for number, item in enumerate(coco["images"]):
            name = f"{(number * 7) % 16:03d}.jpg"
            with Image.open(test / "images" / item["file_name"]) as image:
                image.resize((20 + number, 31)).save(root / folder / name)
            images.append({"id": item["id"], "file_name": name})
        for note in coco["annotations"]:
            notes.append({**note, "id": 1000 - note["id"], "caption": f"{note['caption']} \n"})
        content = json.dumps({"images": images[::-1], "annotations": notes})
        (root / "annotations" / f"captions_{folder}.json").write_text(content)


def test_it_says_where_it_comes_from(retrieval: Run, exported: Path) -> None:
    _, summary = retrieval
    info = json.loads((exported / "lwfed.json").read_text())
    assert info["run_id"] == summary["run_id"] and info["digest"] == summary["digest"]
    assert info["metrics"] == summary["metrics"] and info["temperature"] == 0.07
    assert info["stage"] == 2 and info["blocks"] == {"image": 2, "text": 2}
    assert info["heads"]["image"] == {"widths": [24, 32, 32, 16], "dropout": 0.1}
    assert info["preprocessing"]["image"]["image_size"] == 16
    assert info["preprocessing"]["text"] == {"tokenizer": "bytes", "max_tokens": 64}
    assert (exported / "example.py").read_text() in (exported / "README.md").read_text()


def test_an_earlier_stage_has_fewer_blocks(retrieval: Run, tmp_path: Path) -> None:
    import timm
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    bench, summary = retrieval
    given = export_run(summary["run_id"], tmp_path, bench=bench, stage=1)
    assert given["stage"] == 1 and given["digest"] == summary["stages"][0]["digest"]
    assert given["files"] == sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert given["nbytes"] == sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert json.loads((tmp_path / "text/config.json").read_text())["n_layers"] == 1
    with torch.random.fork_rng():
        assert len(timm.create_model(f"local-dir:{tmp_path}/image", pretrained=True).blocks) == 1
        assert len(AutoModel.from_pretrained(tmp_path / "text").transformer.layer) == 1


def test_heads_are_plain_sequentials(exported: Path) -> None:
    head = nn.Sequential(
        *(nn.Linear(24, 32, bias=False), nn.Dropout(0.1), nn.BatchNorm1d(32), nn.ReLU()),
        *(nn.Linear(32, 32, bias=False), nn.Dropout(0.1), nn.BatchNorm1d(32), nn.ReLU()),
        *(nn.Linear(32, 16, bias=False), nn.BatchNorm1d(16, affine=False)),
    )
    for modality in ("image", "text"):
        head.load_state_dict(load_file(exported / f"heads/{modality}.safetensors"))
    single = sequential({"out.linear.weight": torch.zeros(2, 3), "out.norm.running_mean": torch.zeros(2)})
    assert set(single) == {"0.weight", "1.running_mean"}
    prediction = sequential(
        {f"{layer}.{name}": torch.zeros(1) for layer in ("hidden", "out") for name in ("weight", "bias")}
    )
    assert set(prediction) == {"0.weight", "0.bias", "3.weight", "3.bias"}


def test_timms_own_transform_is_the_evaluations(exported: Path) -> None:
    import timm
    from timm.data import create_transform, resolve_data_config

    with torch.random.fork_rng():
        model = timm.create_model(f"local-dir:{exported}/image", pretrained=True)
    transform = create_transform(**resolve_data_config(model=model))
    noise = np.random.default_rng(1).integers(0, 256, (37, 91, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    ours = normalise_pixels(torch.from_numpy(square_pixels(image, size=16)), HALF)
    assert torch.equal(transform(image), ours)


@pytest.mark.parametrize("kind", ["bytes", "words"])
def test_the_tokenizer_cuts_and_pads_as_training_did(exported: Path, kind: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    texts = ["a small red circle", "é", "a large blue ring left of a small green cross, and more than can be told " * 2]
    if kind == "bytes":
        folder, settings = exported / "text", InputSettings(modalities=("text",), max_tokens=64)
    else:
        values = tiny_runs.spec("image", "text", store=tmp_path / "store")
        text = {**tiny_runs.ENCODERS["text"], "tokenizer": _words(tmp_path / "words"), "max_tokens": 7}
        values["model"]["encoders"] = {"image": tiny_runs.ENCODERS["image"], "text": text}
        bench, summary = tiny_runs.run(values)
        export_run(summary["run_id"], tmp_path / "export", bench=bench)
        folder = tmp_path / "export/text"
        settings = InputSettings(modalities=("text",), tokenizer=text["tokenizer"], max_tokens=7)
    theirs = AutoTokenizer.from_pretrained(folder)(texts, truncation=True, padding=True, return_tensors="pt")
    ours = tokenize(texts, settings=settings)
    assert torch.equal(theirs["input_ids"], ours["ids"])
    assert torch.equal(theirs["attention_mask"].bool(), ours["mask"])


def _words(folder: Path) -> str:
    """Writes a tokenizer of words that would pad on the left."""
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "small", "large", "red", "blue", "circle", "ring", ","]
    (folder / "vocab.txt").write_text("\n".join(words))
    config = {"tokenizer_class": "BertTokenizer", "padding_side": "left", "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return str(folder)


def test_an_export_is_the_weights_of_another_run(tmp_path: Path) -> None:
    values = tiny_runs.spec("image", "text", "audio", store=tmp_path / "store")
    bench, summary = tiny_runs.run(values)
    export_run(summary["run_id"], tmp_path / "export", bench=bench)
    assert None in json.loads((tmp_path / "export/text/config.json").read_bytes()).values()
    encoders = {
        modality: {**encoder, "config": {}, "weights": str(tmp_path / "export" / modality)}
        for modality, encoder in values["model"]["encoders"].items()
    }
    bench, again = tiny_runs.run({**values, "model": {**values["model"], "encoders": encoders}})
    assert again["status"] == "finished" and again["digest"] != summary["digest"]
    export_run(again["run_id"], tmp_path / "again", bench=bench)
    for modality in encoders:
        first, second = (json.loads((tmp_path / name / modality / "config.json").read_bytes()) for name in PAIR)
        assert first == second


def test_an_earlier_export_is_replaced_and_nothing_else(retrieval: Run, tmp_path: Path) -> None:
    bench, summary = retrieval
    folder = tmp_path / "export"
    folder.mkdir()
    export_run(summary["run_id"], folder, bench=bench, with_test_data=True)
    export_run(summary["run_id"], folder, bench=bench, stage=1)
    assert json.loads((folder / "lwfed.json").read_text())["stage"] == 1
    assert not (folder / "test").exists() and not list(folder.glob(".*"))
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(SpecError, match=r"notes\.txt"):
        export_run(summary["run_id"], folder, bench=bench)
    (folder / "notes.txt").unlink()
    (folder / "lwfed.json").unlink()
    with pytest.raises(SpecError, match="not empty"):
        export_run(summary["run_id"], folder, bench=bench)
    (folder / ".lwfed-export-killed").mkdir()  # what a killed export leaves says whose the folder is
    export_run(summary["run_id"], folder, bench=bench)
    assert not list(folder.glob(".*"))
    with pytest.raises(SpecError, match="is a file"):
        export_run(summary["run_id"], folder / "README.md", bench=bench)


def test_what_cannot_be_exported_is_told(tmp_path: Path) -> None:
    bench, summary = tiny_runs.run(tiny_runs.spec("image", "text", store=tmp_path / "store"), last_stage=1)
    run_id = summary["run_id"]
    cases: list[tuple[dict[str, Any], type[LwfedError], str]] = [
        ({"run_id": run_id[:-1]}, NotFoundError, "did you mean tiny"),
        ({"stage": 3}, NotFoundError, "from 1 to 2"),
        ({"stage": 2}, CheckpointError, "stage 2 .* is not committed"),
        ({"folder": bench.store.root / "runs" / run_id / "run.json" / "x"}, UnreachableError, "Not a directory"),
    ]
    for wrong, error, message in cases:
        with pytest.raises(error, match=message):
            export_run(**{"run_id": run_id, "folder": tmp_path / "export", "bench": bench, **wrong})
    assert export_run(run_id, tmp_path / "export", bench=bench)["stage"] == 1
    for block in (bench.store.root / "blocks").rglob("*.safetensors"):
        block.write_bytes(block.read_bytes()[:-1] + b"?")
    with pytest.raises(CheckpointError, match="digest"):
        export_run(run_id, tmp_path / "other", bench=Workbench(bench.store))
    assert not (tmp_path / "other").exists()


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DiskFullError), replacing(tmp_path / "a/b") as folder:
        (folder / "image").mkdir()
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not (tmp_path / "a/b").exists()
