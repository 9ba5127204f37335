"""Laws of data in a bucket: what keeps us out is named in time, and files are fetched when they are needed."""

from __future__ import annotations

import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image
from typer.testing import CliRunner

from lwfed.cli.main import app
from lwfed.data.batches import check_examples
from lwfed.data.digests import MISSING, FileDigests, changed_files, list_files, version_of
from lwfed.data.protocol import open_source
from lwfed.data.sources.table import Rows
from lwfed.spec.data import DataSpec
from lwfed.spec.load import build_spec
from lwfed.types.errors import DataError, DiskFullError, LwfedError, SpecError, UnreachableError
from tests import inertial
from tests.s3 import HOW_TO_GET, Server, make_server, serving_bucket, upload
from tests.tables import write_csv, write_jsonl
from tests.tiny import VALUES
from tests.unit.store.test_s3_answers import EUROPE, HTML, XML, answering, xml

BUCKET = "their-data"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from serving_bucket(tmp_path_factory.mktemp("s3"), BUCKET)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LWFED_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "objects"


@pytest.fixture
def uri(server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder with nothing in it."""
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture
def steps(server: Server, uri: str, tmp_path: Path) -> str:
    """Six examples: a table, and twelve files of signals."""
    root = tmp_path / "root"
    write_csv(root, _rows(root))
    upload(server, root, uri)
    return uri


def _rows(root: Path) -> list[dict[str, Any]]:
    (root / "acc").mkdir(parents=True)
    for n in range(6):
        np.save(root / f"acc/{n}.npy", np.full((8, 3), n, np.float32))
    return [{"series": f"acc/{n}.npy", "label": n % 2, "split": "test" if n > 3 else "train"} for n in range(6)]


def opened(uri: str, **keys: Any) -> Rows:
    source = open_source(DataSpec.model_validate({"source": "table", "root": uri, **keys}))
    assert isinstance(source, Rows)
    return source


def kept(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.is_file()]


def test_only_the_table_is_fetched_before_a_file_is_needed(steps: str, cache: Path) -> None:
    source = opened(steps)
    assert len(kept(cache)) == 1
    example = source.examples("train")[2]
    assert np.array_equal(source.series(example, "series"), np.full((8, 3), 2)) and len(kept(cache)) == 2
    changed_files(source, source.examples("test"), listing={}, digests=FileDigests())
    assert len(kept(cache)) == 4, "the files of two more examples"
    told: list[tuple[int, int]] = []
    again = open_source(
        DataSpec.model_validate({"source": "table", "root": steps}), fetching=lambda *counts: told.append(counts)
    )
    list_files(again, FileDigests())
    assert told == [(1, 3), (2, 3), (3, 3)] and len(kept(cache)) == 7


def test_the_data_are_those_of_the_folder(server: Server, uri: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    rows = _rows(root)
    write_jsonl(root / "acc", rows, "my table.jsonl")
    (root / "acc" / ".hidden").touch()
    (root / "acc" / "unused.npy").touch()
    (root / "notes.txt").write_text("")
    upload(server, root, uri)
    server.client().put_object(Bucket=BUCKET, Key=f"{uri.removeprefix(f's3://{BUCKET}/')}/empty/", Body=b"")
    here, there = (opened(str(place), table="acc/../acc/my table.jsonl") for place in (root, f"{uri}/"))
    assert version_of(there, list_files(there, FileDigests())) == version_of(here, list_files(here, FileDigests()))
    assert there.left_out() == here.left_out() == {
        "hidden files": 1, "files that no row names": 1, "files with other endings": 1,
    }  # fmt: skip
    assert [e.id for e in there.examples("train")] == [e.id for e in here.examples("train")]


def test_a_whole_bucket_is_a_folder_too(server: Server, uri: str, tmp_path: Path) -> None:
    bucket = f"b{uuid.uuid4().hex}"
    server.make_bucket(bucket)
    write_csv(tmp_path, _rows(tmp_path))
    upload(server, tmp_path, f"s3://{bucket}")
    assert len(opened(f"s3://{bucket}").examples("train")) == 4


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"series": "acc/9.npy"}], "row 2: the file {uri}/acc/9.npy of `series` is missing"),
        ([{"series": "acc/1.NPY"}], "1.npy there differs in upper and lower case"),
        ([{"series": "acc"}], "row 2: `series` is 'acc', which ends with none of"),
        ([{"picture": "a.png"}], "{uri}/table.csv has none of the columns"),
    ],
)
def test_a_wrong_row_is_named_with_the_uri(
    server: Server, uri: str, tmp_path: Path, rows: list[dict[str, Any]], words: str
) -> None:
    _rows(tmp_path)
    write_csv(tmp_path, rows)
    upload(server, tmp_path, uri)
    with pytest.raises(DataError) as caught:
        opened(uri)
    assert words.format(uri=uri) in str(caught.value) and " -> " in str(caught.value)


def test_a_table_that_is_missing_is_named_with_what_is_there(server: Server, uri: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"there is nothing in {uri} -> set data\.root"):
        opened(uri)
    write_csv(tmp_path, _rows(tmp_path), "birds.csv")
    upload(server, tmp_path, uri)
    with pytest.raises(DataError, match=rf"{uri} has no table\.csv, .*; it has birds\.csv -> set data\.table"):
        opened(uri)
    with pytest.raises(DataError, match=rf"there is no table {uri}/bird\.csv -> set data\.table"):
        opened(uri, table="bird.csv")


def test_a_damaged_file_is_named_by_its_uri(server: Server, uri: str, tmp_path: Path) -> None:
    rows = _rows(tmp_path)
    (tmp_path / "acc/1.npy").write_bytes(b"no array")
    write_csv(tmp_path, rows)
    upload(server, tmp_path, uri)
    source = opened(uri)
    bad = check_examples(source, examples=source.examples("train"), modalities=("series",))
    assert bad == {"acc/1.npy": f"{uri}/table.csv: row 3: the signal {uri}/acc/1.npy is no .npy file"}


def test_images_and_sounds_are_read_as_from_a_folder(server: Server, uri: str, tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "a.png")
    soundfile.write(tmp_path / "a.wav", np.linspace(0, 0.5, 800), 8_000)
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    write_csv(tmp_path, [{"image": f"{name}.png", "audio": "a.wav", "split": "train"} for name in "ab"])
    upload(server, tmp_path, uri)
    here, there = opened(str(tmp_path)), opened(uri)
    first, second = there.examples("train")
    assert there.image(first).tobytes() == here.image(first).tobytes()
    assert np.array_equal(there.waveform(first)[0], here.waveform(first)[0])
    with pytest.raises(DataError, match=rf"the image {uri}/b\.png cannot be read"):
        there.image(second)


def test_missing_objects_are_skipped_if_the_spec_says_so(server: Server, uri: str, tmp_path: Path) -> None:
    write_csv(tmp_path, [*_rows(tmp_path), {"series": "acc/9.npy", "label": 1, "split": "train"}])
    upload(server, tmp_path, uri)
    source = opened(uri, on_bad_example="skip")
    assert list_files(source, FileDigests())["acc/9.npy"] == MISSING
    bad = check_examples(source, examples=source.examples("train"), modalities=("series",))
    assert bad == {"acc/9.npy": f"{uri}/table.csv: row 8: there is no {uri}/acc/9.npy"}


def test_an_object_that_is_replaced_or_removed_while_it_is_read_is_named(server: Server, steps: str) -> None:
    source, client, prefix = opened(steps), server.client(), steps.removeprefix(f"s3://{BUCKET}/")
    client.put_object(Bucket=BUCKET, Key=f"{prefix}/acc/0.npy", Body=b"other")
    client.delete_object(Bucket=BUCKET, Key=f"{prefix}/acc/1.npy")
    for example, name in zip(source.examples("train"), ("0", "1"), strict=False):
        with pytest.raises(DataError, match=rf"{steps}/acc/{name}\.npy was replaced or removed while it was read"):
            source.series(example, "series")
    with pytest.raises(DataError, match="was replaced or removed"):
        list_files(source, FileDigests())


def test_a_file_of_many_parts_is_fetched_whole(server: Server, uri: str, tmp_path: Path) -> None:
    signal = np.random.default_rng(0).normal(size=(1 << 20, 3))
    np.save(tmp_path / "long.npy", signal)
    write_csv(tmp_path, [{"series": "long.npy", "split": "train"}])
    upload(server, tmp_path, uri)
    source = opened(uri)
    (example,) = source.examples("train")
    assert np.array_equal(source.series(example, "series"), signal)
    assert list_files(source, FileDigests()) == list_files(opened(str(tmp_path)), FileDigests())


def refused(uri: str, kind: type[LwfedError], *words: str, within_s: float = 5.0) -> None:
    """Opens the data by the command line's plan and run, and as a source: the same error each time, and in time."""
    data = [f"-odata={{source: table, root: '{uri}'}}", f"-omodel.encoders={{series: {inertial.ENCODER}}}"]
    spec = [*data, f"-o{inertial.SUPERVISED}", "-ostages.rounds=[1, 1]", "-otracking.uri=null", "-otraining={}"]
    for call in (lambda: opened(uri), *(lambda name=name: _command(name, *spec) for name in ("plan", "run"))):
        began = time.monotonic()
        with pytest.raises(kind) as caught:
            call()
        assert caught.value.exit_code == {UnreachableError: 17, DataError: 11}[kind]
        assert all(word in str(caught.value) for word in words) and caught.value.remedy, str(caught.value)
        assert time.monotonic() - began < within_s


def _command(*arguments: str) -> None:
    ended = CliRunner().invoke(app, arguments)
    assert isinstance(ended.exception, Exception)
    raise ended.exception


def test_a_bucket_that_is_missing_is_named(uri: str) -> None:
    refused("s3://missing-bucket/x", UnreachableError, "has no bucket missing-bucket", "check `data.root`")


def test_a_folder_that_is_missing_is_named(uri: str) -> None:
    refused(uri, DataError, f"there is nothing in {uri}")


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, ("rejects these credentials", "s3:ListBucket", "s3:GetObject")),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, ("rejects these credentials", "AWS_ACCESS_KEY_ID")),
    ],
)
def test_wrong_credentials_are_named(
    uri: str, variables: dict[str, str], words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    refused(uri, UnreachableError, *words, f"of {uri}")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((403, XML, xml("AccessDenied")), ("does not allow these credentials to list the folder", "s3:ListBucket")),
        ((301, XML | EUROPE, xml("PermanentRedirect")), ("PermanentRedirect", "AWS_REGION=eu-west-3")),
        ((200, HTML, b"<!doctype html><title>MinIO Console</title>"), ("a web page", "port of the server's S3 API")),
    ],
)  # fmt: skip
def test_a_server_that_refuses_is_named(
    uri: str, answer: tuple[int, dict[str, str], bytes], words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(*answer) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", address)
        refused(uri, UnreachableError, *words)


def test_a_server_that_is_dead_is_named_in_time(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("LWFED_S3_PATIENCE_S", "1")
    refused(uri, UnreachableError, "http://127.0.0.1:9", f"of {uri} does not answer", "start it", within_s=15)


def test_a_server_that_dies_while_files_are_fetched_is_named_in_time(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mortal = make_server(tmp_path / "s3")
    if mortal is None:
        pytest.skip(HOW_TO_GET)
    mortal.start()
    try:
        for name, value in {**mortal.environment(), "LWFED_S3_PATIENCE_S": "2"}.items():
            monkeypatch.setenv(name, value)
        mortal.make_bucket(BUCKET)
        (tmp_path / "root").mkdir()
        for n in range(40):
            np.save(tmp_path / f"root/{n}.npy", np.full((8, 3), n))
        write_csv(tmp_path / "root", [{"series": f"{n}.npy"} for n in range(40)])
        upload(mortal, tmp_path / "root", f"s3://{BUCKET}/x")

        def kill(done: int, total: int) -> None:
            if done == 3:
                mortal.kill()

        data = DataSpec.model_validate({"source": "table", "root": f"s3://{BUCKET}/x"})
        source, began = open_source(data, fetching=kill), time.monotonic()
        with pytest.raises(UnreachableError, match="does not answer") as caught:
            list_files(source, FileDigests())
        assert time.monotonic() - began < 15 and "--run-id" in caught.value.remedy
        count = len([path for path in kept(cache) if path.suffix == ".npy"])
        mortal.start()
        told: list[int] = []
        found = list_files(open_source(data, fetching=lambda done, total: told.append(total)), FileDigests())
        assert len(found) == 40 and told[0] == 40 - count <= 37, "what was fetched is not fetched again"
    finally:
        mortal.kill()


def test_a_cache_that_cannot_be_written_is_named(steps: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LWFED_CACHE", str(tmp_path / "file"))
    with pytest.raises(UnreachableError, match=rf"{tmp_path}/file.* for files of {steps}.* -> set LWFED_CACHE"):
        opened(steps)


def test_a_cache_that_is_full_is_named(steps: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "small").mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(tmp_path / "small")], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        monkeypatch.setenv("LWFED_CACHE", str(tmp_path / "small"))
        with pytest.raises(DiskFullError, match=rf"no space left in .*small.* for files of {steps} -> .*LWFED_CACHE"):
            list_files(opened(steps), FileDigests())
        assert not list((tmp_path / "small").rglob("*.npy.*")), "no half of a file is left"
    finally:
        subprocess.run(["umount", str(tmp_path / "small")], check=True)


TABLE = "data={source: table, root: 's3://%s'}"
SERIES = ("model.encoders={series: " + str(inertial.ENCODER) + "}", inertial.SUPERVISED)


@pytest.mark.parametrize("root", ["bucket", "bucket/prefix/", "bucket-{client}/x", "bucket/{client}"])
def test_roots_in_buckets_are_taken(root: str) -> None:
    local = ["federation={num_clients: 2, partition: {kind: local}}"] if "{client}" in root else []
    assert build_spec(VALUES, overrides=[TABLE % root, *SERIES, *local]).data.root == f"s3://{root}"


@pytest.mark.parametrize("root", ["", "b", "/x", "a b/x"])
def test_roots_without_a_bucket_are_refused(root: str) -> None:
    with pytest.raises(SpecError, match=r"`data\.root` s3://.* names no bucket.* -> write it as s3://bucket/prefix"):
        build_spec(VALUES, overrides=[TABLE % root, *SERIES])


def test_only_tables_lie_in_buckets() -> None:
    with pytest.raises(SpecError, match=r"name a folder.*s3://bucket/prefix is for table"):
        build_spec(VALUES, overrides=["data={source: coco, root: s3://bucket/coco}"])
