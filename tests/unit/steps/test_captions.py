"""The tokenizer and everyone's captions, those of clients with their own folders too, are compared before a round."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from lwfed.data.protocol import Example
from lwfed.round.train_client import train_client
from lwfed.run.runs import Options
from lwfed.run.tasks import InspectTask, Place
from lwfed.spec.load import to_values
from lwfed.steps.captions import caption_tokens
from lwfed.steps.inspect_client import inspect_client
from lwfed.store.opening import open_store
from lwfed.types.errors import DataError
from tests.e2e import own_data
from tests.tiny import begun, client_task, prepared, tiny_spec

CLIENTS = ("client-000", "client-001", "client-002")


def in_other_words(folder: Path) -> None:
    """Replaces the training captions of a folder by words that the tokenizer lacks."""
    file = folder / "annotations" / "captions_train2017.json"
    tree = json.loads(file.read_text())
    for note in tree["annotations"]:
        note["caption"] = "xyzzy plugh"
    file.write_text(json.dumps(tree))


@pytest.fixture
def local(tmp_path: Path) -> tuple[str, ...]:
    """Writes a tokenizer and each client's own folder; returns overrides for both."""
    for who in (*CLIENTS, "server"):
        own_data.write_coco(tmp_path / "data" / who)
    vocabulary = {
        word: n for n, word in enumerate(("[PAD]", "[UNK]", "picture", ",", "told", "for", "the", "time", "."))
    }
    words = Tokenizer(models.WordLevel(vocabulary | {str(n): 9 + n for n in range(40)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    (tmp_path / "words").mkdir()
    words.save(str(tmp_path / "words" / "tokenizer.json"))
    return (
        f"data={{source: coco, root: '{tmp_path}/data/{{client}}', workers: 0}}",
        "federation={num_clients: 3, partition: {kind: local}}",
        f"model.encoders.text.tokenizer={tmp_path}/words",
    )


def test_one_client_s_captions_in_other_words_are_refused_by_its_name(tmp_path: Path, local: tuple[str, ...]) -> None:
    spec = tiny_spec(tmp_path / "store", *local)
    prepared(spec, store=open_store(spec.store.uri))
    in_other_words(tmp_path / "data" / "client-001")
    with pytest.raises(DataError, match=r"captions of client-001: ") as caught:
        prepared(spec, store=open_store(spec.store.uri), options=Options(run_id="second"))
    assert caught.value.exit_code == 11


def test_a_client_that_alone_sees_its_captions_refuses_them(tmp_path: Path, local: tuple[str, ...]) -> None:
    spec, store = tiny_spec(tmp_path / "store", *local), open_store(str(tmp_path / "store"))
    in_other_words(tmp_path / "data" / "client-001")
    tasks = {
        client: InspectTask(
            store=store.uri, run_id="run", client=client, spec=to_values(spec), place=Place(root=spec.data.root)
        )
        for client in CLIENTS
    }
    assert inspect_client(tasks["client-000"], store=store, emit=print, cache=tmp_path)["bad"] == {}
    with pytest.raises(DataError, match="client-001"):
        inspect_client(tasks["client-001"], store=store, emit=print, cache=tmp_path)


def test_shared_training_captions_in_other_words_are_refused(tmp_path: Path, local: tuple[str, ...]) -> None:
    in_other_words(tmp_path / "data" / "server")
    shared = f"data={{source: coco, root: '{tmp_path}/data/server', workers: 0}}"
    spec = tiny_spec(tmp_path / "store", shared, local[2])
    with pytest.raises(DataError, match="the clients"):
        prepared(spec, store=open_store(spec.store.uri))


def test_captions_are_counted_alone_and_as_batches_pad_them(tmp_path: Path) -> None:
    """As bytes and an end: 3, 5 and 8 tokens, the last truncated. One batch of two is full."""
    spec = tiny_spec(tmp_path, "training.batch_size=2", "model.encoders.text.max_tokens=8")
    examples = [
        Example(id=str(n), label=None, captions=(caption,)) for n, caption in enumerate(("ab", "four", "ten letters"))
    ]
    told: list[Any] = []
    counted = caption_tokens(spec, [[Example(id="mute", label=None)], examples], emit=told.append)
    assert counted.alone == {"text": 5} and counted.padded["text"] in {5, 8}
    assert [event.message.split()[0] for event in told] == ["33%"]
    alike = caption_tokens(spec, [examples[:1] * 5], emit=told.append)
    assert alike.alone == alike.padded == {"text": 3} and len(told) == 1
    assert not caption_tokens(spec, [[]], emit=told.append).alone


def test_a_tokenizer_that_changes_while_a_run_trains_is_named(tmp_path: Path, local: tuple[str, ...]) -> None:
    bench, stage, _ = begun(tmp_path / "store", *local)
    root = str(tmp_path / "data" / "{client}")
    assert train_client(client_task(bench, stage, "client-000", root=root), bench=bench)["num_examples"] == 12
    file = tmp_path / "words" / "tokenizer.json"
    file.write_text(file.read_text().replace('"the":6', '"then":6').replace('"the": 6', '"then": 6'))
    another = type(bench)(bench.store)  # as another process
    with pytest.raises(DataError, match="words") as caught:
        train_client(client_task(another, stage, "client-001", root=root), bench=another)
    assert caught.value.exit_code == 11
