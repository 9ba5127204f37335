from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lwfed.data.batches import check_examples, eval_batches
from lwfed.data.digests import FileDigests, list_files, version_of
from lwfed.data.inputs import InputSettings
from lwfed.data.protocol import open_source
from lwfed.data.sources.coco import Coco, open_data
from lwfed.spec.data import DataSpec
from lwfed.types.errors import DataError

MINI = Path(__file__).parents[3].parent / "shared/data/coco-mini"
SETTINGS = InputSettings(modalities=("image", "text"), image_size=32)


def open_coco(root: Path, *, missing_ok: bool = False) -> Coco:
    return open_data(DataSpec(source="coco", root=str(root), on_bad_example="skip" if missing_ok else "fail"))


def write_coco(root: Path, *, count: int = 3) -> dict[str, Any]:
    """Writes a tiny data set; returns the tree of its training captions."""
    trees: dict[str, Any] = {}
    for folder in ("train2017", "val2017"):
        (root / folder).mkdir(parents=True)
        (root / "annotations").mkdir(exist_ok=True)
        trees[folder] = {
            "images": [{"id": n, "file_name": f"{n:012d}.jpg"} for n in range(count)],
            "annotations": [
                {"id": 10 * n + k, "image_id": n, "caption": f" thing {n},\n said {k} "}
                for k in (1, 0)
                for n in range(count)
            ],
        }
        for n in range(count):
            Image.new("RGB", (40, 30), (n * 40, 90, 10)).save(root / folder / f"{n:012d}.jpg")
        save(root, folder, trees[folder])
    return trees["train2017"]


def save(root: Path, folder: str, tree: Any) -> None:
    (root / "annotations" / f"captions_{folder}.json").write_text(json.dumps(tree))


@pytest.mark.skipif(not MINI.is_dir(), reason="the sample coco-mini is not on this machine")
def test_coco_mini() -> None:
    source = open_source(DataSpec(source="coco", root=str(MINI)))
    train, test = source.examples("train"), source.examples("test")
    assert (len(train), len(test), source.classes) == (80, 79, ())
    assert all(len(example.captions) == 5 and example.label is None for example in (*train, *test))
    assert check_examples(source, examples=test[:6], modalities=SETTINGS.modalities, workers=2) == {}
    batch = next(eval_batches(source, examples=test[:6], settings=SETTINGS, batch_size=4, workers=0))
    assert batch.inputs["image"].shape == (4, 3, 32, 32)
    assert batch.labels is None
    assert batch.ids == tuple(example.id for example in test[:4])


def test_order_and_captions_are_the_json_s_own(tmp_path: Path) -> None:
    write_coco(tmp_path)
    example = open_coco(tmp_path).examples("train")[1]
    assert example.id == "train2017/000000000001.jpg"
    assert example.captions == ("thing 1, said 0", "thing 1, said 1")
    assert example.fields == {"stem": "000000000001"}


def test_the_version_depends_on_content_and_not_on_place(tmp_path: Path) -> None:
    tree = write_coco(tmp_path / "a")

    def version(name: str) -> str:
        source = open_coco(tmp_path / name)
        return version_of(source, list_files(source, FileDigests()))

    before = version("a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert version("b") == before
    tree["annotations"][0]["caption"] = "another"
    save(tmp_path / "b", "train2017", tree)
    assert version("b") != before
    image = tmp_path / "a" / "val2017" / "000000000000.jpg"
    content = bytearray(image.read_bytes())
    content[-3] ^= 1
    image.write_bytes(content)
    assert version("a") != before, "the same length, another content"


def test_a_missing_root_folder_or_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no folder .*nowhere for the coco data -> set data.root"):
        open_source(DataSpec(source="coco", root=str(tmp_path / "nowhere")))
    write_coco(tmp_path)
    (tmp_path / "annotations" / "captions_val2017.json").unlink()
    with pytest.raises(DataError, match=r"no file .*captions_val2017.json -> data.root needs train2017/"):
        open_coco(tmp_path)
    shutil.rmtree(tmp_path / "val2017")
    with pytest.raises(DataError, match=r"no folder .*val2017 -> data.root needs"):
        open_coco(tmp_path)


def test_a_caption_without_its_image_is_named(tmp_path: Path) -> None:
    tree = write_coco(tmp_path)
    lost = tmp_path / "train2017" / "000000000002.jpg"
    lost.unlink()
    with pytest.raises(DataError, match=r"000000000002.jpg of a caption in captions_train2017.json is missing -> rest"):
        open_coco(tmp_path)
    source = open_source(DataSpec(source="coco", root=str(tmp_path), on_bad_example="skip"))
    bad = check_examples(source, examples=source.examples("train"), modalities=("image", "text"))
    assert bad == {"train2017/000000000002.jpg": f"there is no image {lost}"}
    tree["annotations"].append({"id": 99, "image_id": 77, "caption": "an orphan"})
    save(tmp_path, "train2017", tree)
    with pytest.raises(DataError, match=r"'an orphan' has the image id 77, which is not in `images` -> add"):
        open_coco(tmp_path, missing_ok=True)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "is not JSON"),
        ("[]", "captions json"),
        ('{"images": [{"id": 1}], "annotations": []}', r"captions json: images\[0\] .*`file_name` is missing"),
        ('{"images": {}, "annotations": []}', "captions json: it has no list `images`"),
        ('{"images": [7], "annotations": []}', r"images\[0\]: `id` is missing"),
        ('{"images": [], "annotations": [], "images": []}', "the key 'images' twice"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('{"images": [], "annotations": [{"id": 1, "image_id": 1, "caption": null}]}', "captions json"),
        ('{"images": [], "annotations": []}', "no captions"),
    ],
)
def test_a_damaged_json_is_named(tmp_path: Path, content: str, problem: str) -> None:
    write_coco(tmp_path)
    (tmp_path / "annotations" / "captions_train2017.json").write_text(content)
    with pytest.raises(DataError, match=f"captions_train2017.json .*{problem}.* -> ") as caught:
        open_coco(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_json_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    write_coco(tmp_path)
    (tmp_path / "annotations" / "captions_train2017.json").write_bytes('{"a": "caf\u00e9"}'.encode("latin-1"))
    with pytest.raises(DataError, match=r"captions_train2017.json is not UTF-8: .* -> save"):
        open_coco(tmp_path)


def with_image(tree: Any, **values: Any) -> None:
    tree["images"].append({"id": 7, "file_name": "7.jpg"} | values)


def with_note(tree: Any, **values: Any) -> None:
    tree["annotations"].append({"id": 77, "image_id": 0, "caption": "a text"} | values)


@pytest.mark.parametrize("split", ["train2017", "val2017"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tree: with_image(tree, id=1), r"images\[1\] and images\[3\] have the same id, 1"),
        (lambda tree: with_image(tree, file_name="000000000001.jpg"), r"images\[1\] and images\[3\] .*same file_name"),
        (lambda tree: with_image(tree, file_name="./000000000001.jpg"), r"images\[1\] and images\[3\] .*file_name"),
        (lambda tree: with_image(tree, file_name="a/../000000000001.jpg"), r"images\[1\] and images\[3\] .*file_name"),
        (lambda tree: with_note(tree, id=10), r"annotations\[4\] and annotations\[6\] have the same id, 10"),
        (lambda tree: with_note(tree, id=10, caption=" "), r"annotations\[4\] and annotations\[6\] have the same id"),
        (lambda tree: with_image(tree, id="1"), r'images\[3\] \(id "1"\): `id` is a text, "1", and an integer before'),
        (lambda tree: with_note(tree, id="a"), r"annotations\[6\] .*`id` is a text"),
        (lambda tree: with_note(tree, image_id="1"), r"annotations\[6\] \(id 77\): `image_id` is a text"),
        (lambda tree: with_image(tree, id=1.0), r"images\[3\]: `id` is 1\.0, not an integer or a text"),
        (lambda tree: with_image(tree, id=True), r"images\[3\]: `id` is true"),
        (lambda tree: with_image(tree, id=None), r"images\[3\]: `id` is null"),
        (lambda tree: with_image(tree, id=[1]), r"images\[3\]: `id` is a list"),
        (lambda tree: with_note(tree, image_id={}), r"annotations\[6\] \(id 77\): `image_id` is an object"),
        (lambda tree: with_note(tree, image_id=5), r"annotations\[6\] \(id 77\): .* the image id 5, which is not in"),
        (lambda tree: with_note(tree, image_id=5, caption=""), r"annotations\[6\] \(id 77\): .* the image id 5"),
        (
            lambda tree: with_note(tree, caption=float("nan")),
            r"annotations\[6\] \(id 77\): `caption` is NaN, not a text",
        ),
        (lambda tree: with_note(tree, caption=None), r"annotations\[6\] \(id 77\): `caption` is null, not a text"),
        (lambda tree: with_note(tree, caption=["a"]), r"annotations\[6\] \(id 77\): `caption` is a list, not a text"),
        (
            lambda tree: with_note(tree, caption="a \ud83d b"),
            r"annotations\[6\] \(id 77\): `caption` has half of a surr",
        ),
        (lambda tree: with_image(tree, file_name="caf\udce9.jpg"), r"images\[3\] \(id 7\): `file_name` has half"),
        (lambda tree: with_image(tree, file_name=7), r"images\[3\] \(id 7\): `file_name` is 7, not a text"),
        (lambda tree: with_image(tree, file_name=""), r"images\[3\]: the file_name '' is not in the folder"),
        (lambda tree: with_image(tree, file_name="../val2017/0.jpg"), r"images\[3\]: .* is not in the folder"),
        (lambda tree: with_image(tree, file_name="/etc/passwd"), r"images\[3\]: .* is not in the folder"),
        (lambda tree: with_image(tree, file_name="a\0b.jpg"), r"images\[3\]: .* is not in the folder"),
    ],
)
def test_entries_that_do_not_fit_are_named(tmp_path: Path, split: str, change: Any, words: str) -> None:
    tree = write_coco(tmp_path)
    change(tree)
    save(tmp_path, split, tree)
    for missing_ok in (False, True):  # what to skip are files, not entries
        with pytest.raises(DataError, match=rf"annotations/captions_{split}\.json.* {words}.* -> ") as caught:
            open_coco(tmp_path, missing_ok=missing_ok)
        assert str(caught.value).isprintable()


def test_ids_may_be_texts_and_images_in_folders(tmp_path: Path) -> None:
    tree = write_coco(tmp_path)
    for entry in (*tree["images"], *tree["annotations"]):
        entry.update({key: f"x{entry[key]}" for key in ("id", "image_id") if key in entry})
    (tmp_path / "train2017" / "more").mkdir()
    (tmp_path / "train2017" / "000000000001.jpg").rename(tmp_path / "train2017" / "more" / "1.jpg")
    tree["images"][1]["file_name"] = "more//1.jpg"
    save(tmp_path, "train2017", tree)
    source = open_coco(tmp_path)
    assert [example.id for example in source.train] == [
        "train2017/000000000000.jpg", "train2017/000000000002.jpg", "train2017/more/1.jpg"
    ]  # fmt: skip
    assert source.train[2].captions == ("thing 1, said 0", "thing 1, said 1")
    assert source.image(source.train[2]).size == (40, 30)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_truncated_image_is_named_in_one_line(tmp_path: Path, workers: int) -> None:
    write_coco(tmp_path)
    path = tmp_path / "train2017" / "000000000001.jpg"
    path.write_bytes(path.read_bytes()[:-60])
    source = open_coco(tmp_path)
    with pytest.raises(DataError, match=r"000000000001.jpg cannot be read: .*[Tt]runcated.* -> fix") as caught:
        list(eval_batches(source, examples=source.train, settings=SETTINGS, batch_size=2, workers=workers))
    assert "\n" not in str(caught.value)
    path.write_bytes(b"no image at all")
    bad = check_examples(source, examples=source.train, modalities=("image",))
    assert list(bad) == ["train2017/000000000001.jpg"]
    assert "cannot be read" in bad["train2017/000000000001.jpg"]


def test_images_of_other_modes_are_read_as_rgb(tmp_path: Path) -> None:
    write_coco(tmp_path, count=4)
    folder = tmp_path / "train2017"
    Image.new("L", (8, 8), 7).save(folder / "000000000000.jpg")
    Image.new("CMYK", (8, 8)).save(folder / "000000000001.jpg")
    Image.new("P", (8, 8)).save(folder / "000000000002.jpg", format="PNG", transparency=b"\x00\x01")
    Image.new("RGBA", (8, 8)).save(folder / "000000000003.jpg", format="PNG")
    source = open_coco(tmp_path)
    assert {source.image(example).mode for example in source.train} == {"RGB"}


def test_there_is_no_sound(tmp_path: Path) -> None:
    write_coco(tmp_path)
    source = open_coco(tmp_path)
    with pytest.raises(DataError, match="no sound for"):
        source.waveform(source.train[0])


@pytest.mark.parametrize(
    ("there", "hint"),
    [
        ("bl\u00e4tter.png", "blätter.png is there"), ("BLÄTTER.jpg", "upper and lower case"),
        ("bla\u0308tter.jpg", "Unicode normalisation"), ("other.jpg", ""),
    ],
)  # fmt: skip
def test_a_name_that_people_take_for_the_missing_one_is_named(tmp_path: Path, there: str, hint: str) -> None:
    write_coco(tmp_path)
    path = tmp_path / "annotations" / "captions_train2017.json"
    tree = json.loads(path.read_bytes())
    missing = tree["images"][0]["file_name"]
    tree["images"][0]["file_name"] = "bl\u00e4tter.jpg"
    path.write_text(json.dumps(tree))
    (tmp_path / "train2017" / missing).rename(tmp_path / "train2017" / there)
    with pytest.raises(DataError, match=rf"bl\u00e4tter.jpg of a caption in .*missing.*{hint}.* -> restore"):
        open_coco(tmp_path)


@pytest.mark.parametrize("to_text", [True, False])
def test_ids_of_another_type_are_told(tmp_path: Path, to_text: bool) -> None:
    write_coco(tmp_path)
    path = tmp_path / "annotations" / "captions_train2017.json"
    tree = json.loads(path.read_bytes())
    for entry, key in (
        [(note, "image_id") for note in tree["annotations"]] if to_text else [(image, "id") for image in tree["images"]]
    ):
        entry[key] = str(entry[key])
    path.write_text(json.dumps(tree))
    words = "integer.* a text" if to_text else "text.* an integer"
    with pytest.raises(DataError, match=rf"not in `images`: there, ids are an? ?{words}"):
        open_coco(tmp_path)


def test_a_compressed_json_is_told(tmp_path: Path) -> None:
    write_coco(tmp_path)
    path = tmp_path / "annotations" / "captions_train2017.json"
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(DataError, match=r"captions_train2017.json is compressed -> decompress"):
        open_coco(tmp_path)


def test_a_folder_in_place_of_an_image_is_a_bad_example(tmp_path: Path) -> None:
    write_coco(tmp_path)
    image = next((tmp_path / "train2017").iterdir())
    image.unlink()
    image.mkdir()
    source = open_data(DataSpec(source="coco", root=str(tmp_path), on_bad_example="skip"))
    assert list_files(source, FileDigests())[f"train2017/{image.name}"] == "missing"
    assert list(check_examples(source, examples=source.examples("train"), modalities=("image", "text"), workers=0)) == [
        f"train2017/{image.name}"
    ]
