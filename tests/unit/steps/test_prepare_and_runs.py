"""Laws of preparing a run: what is wrong is found before any work, and what is right is written down whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from lwfed.data.tokens import open_tokenizer
from lwfed.plan.stages import plan_stages
from lwfed.run import runs
from lwfed.run.runs import Options
from lwfed.spec.load import build_spec
from lwfed.steps.prepare import draft, prepare
from lwfed.store import paths
from lwfed.store.local import LocalStore
from lwfed.types.errors import CheckpointError, DataError, NotFoundError, ResumeError, SpecError
from lwfed.types.records import RunRecord
from tests.events import emit_to, ignore
from tests.tiny import DEPTHS, Finished, prepared, tiny_spec


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


def test_a_draft_writes_nothing(store: LocalStore) -> None:
    run = draft(tiny_spec(store.root), store=store, options=Options())
    assert not store.root.exists() or not list(store.list(""))
    assert run.depths == DEPTHS and run.strategy == "layerwise" and len(run.predicted) == 2


def test_a_run_is_written_down_whole(store: LocalStore) -> None:
    spec = tiny_spec(store.root)
    run = prepared(spec, store=store, options=Options(run_id="mine"))
    assert runs.read_run(store, "mine") == run
    assert run.data.clients == {"client-000": 12, "client-001": 12}
    assert (run.data.num_train, run.data.num_test) == (24, 8)
    assert runs.plans_of(run) == plan_stages(spec, depths=DEPTHS)
    read = runs.spec_of(run)
    assert read.training == spec.training and read.model == spec.model and read.federation == spec.federation
    assert list(runs.run_ids(store)) == ["mine"]


def test_names_of_runs_that_are_not_given_differ(store: LocalStore) -> None:
    names = {draft(tiny_spec(store.root), store=store, options=Options()).run_id for _ in range(20)}
    assert len(names) == 20 and all(name.startswith("tiny-2") for name in names)


def test_preparing_again_gives_the_run_as_it_is(store: LocalStore) -> None:
    first = prepared(tiny_spec(store.root), store=store, options=Options(run_id="mine"))
    runs.note_stage(store, first, 1, "k" * 64)
    again = prepared(tiny_spec(store.root), store=store, options=Options(run_id="mine"))
    assert [item.key for item in again.stages] == ["k" * 64] and again.created == first.created


def test_the_number_of_clients_may_follow_the_groups_of_the_data(store: LocalStore) -> None:
    groups = "federation={num_clients: null, partition: {kind: by_group, field: colour}}"
    run = prepared(tiny_spec(store.root, groups), store=store)
    found = len(run.data.clients)
    assert found > 2 and run.spec["federation"]["num_clients"] == found == runs.plans_of(run)[0].cohort.num_clients
    given = groups.replace("null", str(found))
    assert prepared(tiny_spec(store.root, given), store=store).data.clients == run.data.clients
    assert tiny_spec(store.root, "federation={partition: {kind: iid}}").federation.num_clients == 10
    with pytest.raises(SpecError, match="num_clients"):
        plan_stages(tiny_spec(store.root, groups), depths=DEPTHS)
    with pytest.raises(SpecError, match="min_fit_clients"):
        prepared(tiny_spec(store.root, groups, "federation.min_fit_clients=99"), store=store)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("federation.num_clients=13",), "no data|example"),
        (("federation.num_clients=24",), "client"),
        (("federation={num_clients: 8, partition: {kind: dirichlet, alpha: 0.01, min_size: 3}}",), "client"),
        (("federation={num_clients: 3, partition: {kind: by_group, field: kind}}",), "group"),
        (("federation={num_clients: 5, partition: {kind: by_group, field: colr}}",), "colr"),
        (("data.shapes.test=100000",), "scenes"),
    ],
)
def test_clients_without_enough_data_are_named_before_any_work(
    store: LocalStore, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        prepared(tiny_spec(store.root, *overrides), store=store)
    assert caught.value.remedy
    assert not list(runs.run_ids(store)), "nothing is written down"


def test_cuts_that_do_not_fit_are_found_in_the_draft(store: LocalStore) -> None:
    with pytest.raises(SpecError, match="make them sum to 2"):
        draft(tiny_spec(store.root, "model.encoders.text.blocks_per_stage=2"), store=store, options=Options())


def test_a_parent_must_be_there_and_have_the_stage(finished: Finished) -> None:
    store, spec = finished.store, tiny_spec(finished.store.uri)
    parent = finished.run.run_id
    for stage in (0, 3):
        with pytest.raises(ResumeError, match=f"no stage {stage}"):
            draft(spec, store=store, options=Options(parent=(parent, stage)))
    with pytest.raises(NotFoundError, match=f"did you mean {parent}"):
        draft(spec, store=store, options=Options(parent=(parent[:-1], 2)))
    run = draft(spec, store=store, options=Options(parent=(parent, 2)))
    assert [item.to_values() for item in run.stages] == [{"stage": 1, "key": finished.keys[0]}]


def test_a_parent_whose_stage_is_not_committed_is_refused(store: LocalStore) -> None:
    prepared(tiny_spec(store.root), store=store, options=Options(run_id="mine"))
    with pytest.raises(CheckpointError, match=r"stage 1 of run .* is not committed") as caught:
        draft(tiny_spec(store.root), store=store, options=Options(parent=("mine", 2)))
    assert "lwfed run" in caught.value.remedy


def test_the_data_may_not_change_under_a_run(store: LocalStore) -> None:
    prepared(tiny_spec(store.root), store=store, options=Options(run_id="mine"))
    run = runs.read_run(store, "mine")
    store.write_ref(paths.run("mine"), run.changed(data=run.data.changed(version="other")).to_values())
    with pytest.raises(ResumeError, match="the data of run mine have changed"):
        draft(tiny_spec(store.root), store=store, options=Options(run_id="mine"))
    store.write_ref(paths.run("mine"), run.changed(code_version="other").to_values())
    with pytest.raises(ResumeError, match="another version of the code"):
        draft(tiny_spec(store.root), store=store, options=Options(run_id="mine"))


def test_history_is_what_is_committed(finished: Finished) -> None:
    stages, rounds = runs.history(finished.store, runs.read_run(finished.store, finished.run.run_id))
    assert [record.to_values() for record in stages] == finished.reported("stage")
    assert [record.to_values() for record in rounds] == finished.reported("round")


def test_an_unknown_run_is_guessed(finished: Finished) -> None:
    with pytest.raises(NotFoundError, match="see `lwfed list`"):
        runs.read_run(finished.store, "zzz")


def test_keys_of_fresh_runs_are_their_own(store: LocalStore) -> None:
    spec = tiny_spec(store.root)
    plain, other = (draft(spec, store=store, options=Options(run_id=name)) for name in ("a", "b"))
    fresh, fresher = (draft(spec, store=store, options=Options(run_id=name, fresh=True)) for name in ("a", "b"))
    keys = [runs.key_of(run, runs.plans_of(run)[0], input_digest="") for run in (plain, other, fresh, fresher)]
    assert keys[0] == keys[1] and len(set(keys)) == 3


def test_what_is_predicted_is_of_the_batch_that_clients_reach(store: LocalStore) -> None:
    small = prepared(tiny_spec(store.root, "training.batch_size=64"), store=store)
    assert [cost["batch_size"] for cost in small.predicted] == [12, 12]
    assert small.predicted[0]["tokens"]["text"] < 64, "captions as long as they are"


def test_truncated_captions_are_reported(store: LocalStore) -> None:
    told: list[tuple[str, dict[str, object]]] = []
    run = draft(tiny_spec(store.root, "model.encoders.text.max_tokens=10"), store=store, options=Options())
    prepare(run, store=store, emit=emit_to(lambda kind, values: told.append((kind, values))))
    messages = [str(values["message"]) for kind, values in told if kind == "warning"]
    assert any("10 tokens" in message and "max_tokens" in message for message in messages)


def test_a_changed_tokenizer_is_another_run_and_an_unknown_one_is_refused(store: LocalStore, tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()

    def drafted(*words: str) -> RunRecord:
        lines = "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])
        (folder / "vocab.txt").write_text(f"{lines}\n")
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
        named = tiny_spec(store.root, f"model.encoders.text.tokenizer={folder}")
        return draft(named, store=store, options=Options(run_id="mine"))

    runs_made = [drafted("a", "red"), drafted("red", "a"), drafted("a", "red")]
    first, other, again = (run.data.version for run in runs_made)
    assert first == again != other
    assert open_tokenizer(str(folder)).convert_tokens_to_ids("red") == 6
    unknown = drafted("zebra")
    with pytest.raises(DataError, match="unknown"):
        prepare(unknown, store=store, emit=ignore)
    assert not list(runs.run_ids(store))


@pytest.mark.parametrize(
    ("modality", "setting", "value"),
    [
        ("image", "in_chans", 1), ("image", "img_size", 0), ("image", "drop_rate", 1), ("image", "mlp_ratio", 0),
        ("text", "vocab_size", 0), ("text", "dropout", 2), ("text", "attention_dropout", -0.1),
        ("audio", "num_mel_bins", 258), ("audio", "patch_size", 0), ("audio", "hidden_dropout_prob", 1.5),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused_in_the_spec(modality: str, setting: str, value: float) -> None:
    family = {"image": "{family: vit, arch: vit_tiny_patch16_224}", "audio": "{family: ast}"}
    whole = [f"model.encoders.{modality}={family[modality]}"] if modality in family else []
    with pytest.raises(SpecError, match=f"config.{setting}"):
        tiny_spec("store", *whole, f"model.encoders.{modality}.config.{setting}={value}")


def test_pictures_smaller_than_a_patch_are_refused_in_the_draft(store: LocalStore) -> None:
    with pytest.raises(SpecError, match=r"cannot compute|smaller"):
        draft(tiny_spec(store.root, "model.encoders.image.config.img_size=7"), store=store, options=Options())


def test_a_spec_that_is_written_down_can_be_built_again(store: LocalStore) -> None:
    run = prepared(tiny_spec(store.root, "federation.num_clients=1"), store=store)
    assert build_spec(run.spec).federation.num_clients == 1
