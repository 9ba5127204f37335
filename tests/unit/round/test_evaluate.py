"""Laws of judging a model: each score is what its definition says, however the data are cut into batches."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from lwfed.data.batches import eval_batches
from lwfed.data.protocol import open_source
from lwfed.models.build import initial_tensors, load
from lwfed.models.multimodal import Multimodal
from lwfed.round.evaluate import embed, evaluate
from lwfed.round.workbench import Workbench
from lwfed.run.measured import pooled
from lwfed.run.stage import Stage
from lwfed.run.tasks import Place
from lwfed.spec.data import DataSpec
from tests.e2e import own_data
from tests.tiny import begun

CPU = torch.device("cpu")
PLACE = Place(device="cpu")


def model_of(bench: Workbench, stage: Stage) -> Multimodal:
    tensors = initial_tensors(
        stage.plan.model, units=stage.plan.present, depth=stage.plan.depth, num_classes=stage.num_classes, seed="9"
    )
    return load(bench.skeleton(stage.key), tensors)


def judge(bench: Workbench, stage: Stage, module: Multimodal, **changes: Any) -> dict[str, float]:
    return evaluate(
        module,
        source=bench.data(stage, PLACE),
        examples=bench.examples(stage, PLACE, "test"),
        inputs=bench.inputs(stage),
        model=stage.plan.model,
        evaluation=stage.plan.evaluation.model_copy(update=changes),
        workers=0,
        device=CPU,
    )


def test_recall_is_counted_over_all_captions(tmp_path: Path) -> None:
    bench, stage, _ = begun(tmp_path, "data.shapes.test=12")
    module = model_of(bench, stage)
    scores = judge(bench, stage, module)
    ks = (1, 5, 10, 50)
    expected_names = {f"test/{way}/R@{k}" for way in ("t2i", "i2t") for k in ks} | {
        "test/loss",
        "test/zero_shot/accuracy",
    }
    assert set(scores) == expected_names
    examples = bench.examples(stage, PLACE, "test")
    batches = eval_batches(
        bench.data(stage, PLACE), examples=examples, settings=bench.inputs(stage), batch_size=64, workers=0
    )
    with torch.inference_mode():
        embedded = embed(
            module, batches, examples=examples, inputs=bench.inputs(stage), model=stage.plan.model,
            evaluation=stage.plan.evaluation, device=CPU,
        )  # fmt: skip
    images, texts, owner = embedded.of["image"], embedded.of["text"], embedded.owner["text"]
    assert texts.shape[0] == 12 * 5 == len(owner), "five captions an example"
    assert torch.allclose(normalize(texts, dim=-1), texts, atol=1e-6)
    similar = texts @ images.T
    for k in ks:
        found = [int(owner[row]) in similar[row].argsort(descending=True)[:k] for row in range(len(owner))]
        assert scores[f"test/t2i/R@{k}"] == pytest.approx(sum(found) / len(found), abs=1e-6)
        hits = [bool((owner[similar[:, n].argsort(descending=True)[:k]] == n).any()) for n in range(12)]
        assert scores[f"test/i2t/R@{k}"] == pytest.approx(sum(hits) / 12, abs=1e-6)
    assert all(0 <= value <= 1 for name, value in scores.items() if name != "test/loss")
    assert all(scores[f"test/t2i/R@{a}"] <= scores[f"test/t2i/R@{b}"] for a, b in pairwise(ks))


def test_a_picture_of_several_examples_is_one_item(tmp_path: Path) -> None:
    """Rows per caption, with ids of their own, are judged like one example per picture with all its captions."""
    root = tmp_path / "data"
    own_data.write_coco(root)
    notes = json.loads((root / "annotations/captions_val2017.json").read_bytes())["annotations"]
    told = [
        {"image": f"val2017/{note['image_id']:06d}.jpg", "text": note["caption"], "split": "test"} for note in notes
    ]
    scores = []
    for name, rows in (("one", told), ("many", [{**row, "id": n} for n, row in enumerate(told)])):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = {"source": "table", "root": str(root), "table": f"{name}.jsonl"}
        bench, stage, _ = begun(tmp_path / name)
        source = open_source(DataSpec.model_validate(data))
        examples = source.examples("test")
        assert len(examples) == (6 if name == "one" else 30)
        scores.append(
            evaluate(
                model_of(bench, stage), source=source, examples=examples, inputs=bench.inputs(stage),
                model=stage.plan.model, evaluation=stage.plan.evaluation, workers=0, device=CPU,
            )
        )  # fmt: skip
    assert scores[0].keys() == scores[1].keys()
    assert all(scores[0][name] == scores[1][name] for name in scores[0] if "/R@" in name)


@pytest.mark.parametrize("objective", ["contrastive", "supervised"])
def test_scores_do_not_depend_on_how_the_data_are_cut(tmp_path: Path, objective: str) -> None:
    bench, stage, _ = begun(tmp_path, f"model.objective={{kind: {objective}}}")
    module = model_of(bench, stage)
    whole, cut = judge(bench, stage, module, batch_size=64), judge(bench, stage, module, batch_size=3)
    assert whole.keys() == cut.keys()
    for name in whole:
        if name != "test/loss" or objective == "supervised":  # a contrastive loss has the batch's own negatives
            assert cut[name] == pytest.approx(whole[name], abs=1e-5), name


def test_supervised_scores(tmp_path: Path) -> None:
    bench, stage, _ = begun(tmp_path, "model.objective={kind: supervised, hidden: 12}", "data.shapes.test=20")
    scores = judge(bench, stage, model_of(bench, stage))
    assert set(scores) == {f"test/{name}" for name in ("loss", "accuracy", "precision", "recall", "f1")}
    assert all(0 <= scores[f"test/{name}"] <= 1 for name in ("accuracy", "precision", "recall", "f1"))


def test_judging_leaves_the_model_as_it_is_and_draws_nothing(tmp_path: Path) -> None:
    bench, stage, _ = begun(tmp_path)
    module = model_of(bench, stage)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state = torch.get_rng_state()
    first = judge(bench, stage, module.train())
    assert not module.training, "dropout is off and statistics stand still"
    assert judge(bench, stage, module) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_zero_shot_prompts_and_class_names_count(tmp_path: Path) -> None:
    bench, stage, _ = begun(tmp_path, "data.shapes.test=40")
    module = model_of(bench, stage)
    names = bench.data(stage, PLACE).classes
    plain = judge(bench, stage, module)["test/zero_shot/accuracy"]
    assert judge(bench, stage, module, classes=tuple(names))["test/zero_shot/accuracy"] == plain
    several = judge(bench, stage, module, prompts=("a {c}", "the {c} of {c}"))
    assert 0 <= several["test/zero_shot/accuracy"] <= 1


def test_clients_scores_are_averaged_by_their_examples() -> None:
    parts = {
        "client-001": (30, {"federated/loss": 1.0, "federated/accuracy": 0.5}),
        "client-000": (10, {"federated/loss": 3.0, "federated/accuracy": 1.0, "federated/odd": 1.0}),
    }
    assert pooled(parts) == {
        "federated/loss": pytest.approx(1.5), "federated/accuracy": pytest.approx(0.625), "federated/odd": 1.0
    }, "each over the clients that have it"  # fmt: skip
    assert pooled(dict(reversed(parts.items()))) == pooled(parts), "bit for bit, whatever came first"
    assert pooled({}) == {}
