"""Laws of judging examples that lack a modality: a pair is judged over those that have both."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch

from lwfed.data.batches import eval_batches
from lwfed.data.incomplete import lacked_by
from lwfed.data.protocol import Example
from lwfed.models.build import initial_tensors, load
from lwfed.models.multimodal import Multimodal
from lwfed.objectives.retrieval import KS
from lwfed.report.retrieval import retrieval_grid
from lwfed.round.evaluate import evaluate
from lwfed.round.workbench import Workbench
from lwfed.run.stage import Stage
from lwfed.run.tasks import Place
from lwfed.types.modalities import retrieval_task
from tests.holes import SUPERVISED, on, rows_of, write_holes
from tests.tables import write_jsonl
from tests.tiny import begun, run_tiny

CPU = torch.device("cpu")
MODALITIES = ("audio", "image", "text")


class Judge:
    """A model that nothing has trained, on the test examples of a table."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        self.place = Place(root=str(folder / "data"), device="cpu")
        self.bench: Workbench
        self.stage: Stage
        self.bench, self.stage, _ = begun(folder / "store", *on(folder / "data", *overrides))
        plan = self.stage.plan
        tensors = initial_tensors(
            plan.model, units=plan.present, depth=plan.depth, num_classes=self.stage.num_classes, seed="9"
        )
        self.module: Multimodal = load(self.bench.skeleton(self.stage.key), tensors).eval()
        self.examples = self.bench.examples(self.stage, self.place, "test")

    def scores(self, examples: Sequence[Example] | None = None, **changes: Any) -> dict[str, float]:
        return evaluate(
            self.module,
            source=self.bench.data(self.stage, self.place),
            examples=self.examples if examples is None else examples,
            inputs=self.bench.inputs(self.stage),
            model=self.stage.plan.model,
            evaluation=self.stage.plan.evaluation.model_copy(update=changes),
            workers=0,
            device=CPU,
        )

    def alone(self, example: Example) -> dict[str, torch.Tensor]:
        """Projects an example by itself."""
        (batch,) = eval_batches(
            self.bench.data(self.stage, self.place), examples=[example], settings=self.bench.inputs(self.stage),
            batch_size=1, workers=0,
        )  # fmt: skip
        with torch.inference_mode():
            return {m: p[0] for m, p in self.module(batch.inputs).items()}


def test_recall_of_each_pair_is_counted_over_those_that_have_both(tmp_path: Path) -> None:
    write_holes(tmp_path / "data", count=90)
    judge = Judge(tmp_path)
    scores = judge.scores()
    assert len(judge.examples) == 18 and sum(bool(lacked_by(e, MODALITIES)) for e in judge.examples) == 12
    projected = [judge.alone(example) for example in judge.examples]
    for query, item in permutations(MODALITIES, 2):
        both = [found for found in projected if query in found and item in found]
        assert len(both) == (12 if {query, item} == {"image", "text"} else 9)
        normal = torch.nn.functional.normalize
        similar = (
            torch.stack([normal(f[query], dim=0) for f in both]) @ torch.stack([normal(f[item], dim=0) for f in both]).T
        )
        places = [(row >= row[n]).sum() - 1 for n, row in enumerate(similar)]
        for k in KS:
            expected = sum(int(place) < k for place in places) / len(places)
            assert scores[f"test/{retrieval_task(query, item)}/R@{k}"] == pytest.approx(expected)
    for name in scores:
        assert name == "test/loss" or 0 <= scores[name] <= 1


def test_examples_alone_score_as_among_others(tmp_path: Path) -> None:
    """What lacks a modality of a pair changes nothing for the pair."""
    write_holes(tmp_path / "data", count=60)
    judge = Judge(tmp_path)
    whole = judge.scores()
    both = [e for e in judge.examples if e.has("image") and e.has("text")]
    some = judge.scores(both)
    assert len(both) < len(judge.examples)
    names = [name for name in whole if name.startswith(("test/i2t", "test/t2i"))]
    assert len(names) == 8 and {name: whole[name] for name in names} == {name: some[name] for name in names}
    pictured = [e for e in judge.examples if e.has("image")]
    assert judge.scores(pictured)["test/zero_shot/accuracy"] == whole["test/zero_shot/accuracy"]


def test_scores_do_not_depend_on_how_the_data_are_cut(tmp_path: Path) -> None:
    write_holes(tmp_path / "data", count=60)
    for name, overrides in (("contrastive", ()), ("supervised", (SUPERVISED,))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data").symlink_to(tmp_path / "data")
        judge = Judge(tmp_path / name, *overrides)
        whole, cut = judge.scores(batch_size=64), judge.scores(batch_size=1 if overrides else 5)
        assert whole.keys() == cut.keys()
        for metric in whole:
            if metric != "test/loss" or overrides:  # a contrastive loss has the batch's own negatives
                assert cut[metric] == pytest.approx(whole[metric], abs=1e-5), metric


def test_classes_are_predicted_from_what_there_is(tmp_path: Path) -> None:
    write_holes(tmp_path / "data", count=60, lacks=("", "audio", "audio image", "audio text"))
    judge = Judge(tmp_path, SUPERVISED)
    logits = []
    for example in judge.examples:
        found = judge.alone(example)
        parts = {m: found.get(m, torch.zeros(8))[None] for m in ("audio", "image", "text")}
        with torch.inference_mode():
            logits.append(judge.module.classify(parts)[0])
    labels = torch.tensor([example.label for example in judge.examples])
    scores = judge.scores()
    assert scores["test/accuracy"] == pytest.approx(float((torch.stack(logits).argmax(1) == labels).double().mean()))
    expected = torch.nn.functional.cross_entropy(torch.stack(logits), labels)
    assert scores["test/loss"] == pytest.approx(float(expected), rel=1e-5)


def test_a_pair_that_no_example_has_has_no_metrics(tmp_path: Path) -> None:
    write_holes(tmp_path / "data", lacks=("text", "audio"))
    done = run_tiny(tmp_path / "store", *on(tmp_path / "data"))
    metrics = done.summary["metrics"]
    assert {"test/a2i/R@1", "test/i2a/R@1", "test/i2t/R@1", "test/t2i/R@1", "test/loss"} <= metrics.keys()
    assert not any(name.startswith(("test/a2t", "test/t2a")) for name in metrics)
    assert [e["message"] for e in done.reported("warning")] == []


def test_a_sound_of_several_examples_is_one_item_and_answers_each(tmp_path: Path) -> None:
    """Whether others that have it also have a picture."""
    rows = rows_of(tmp_path / "data", lacks=("",))
    tests = [row for row in rows if row["split"] == "test"]
    tests[0]["audio"] = tests[1]["audio"] = tests[2]["audio"]
    tests[1]["image"] = None
    write_jsonl(tmp_path / "data", rows)
    judge = Judge(tmp_path)
    projected = [judge.alone(example) for example in judge.examples]
    scores = judge.scores()
    sounds = [2, 3, 4, 5]
    normal = torch.nn.functional.normalize
    texts = normal(torch.stack([found["text"] for found in projected]), dim=1)
    similar = texts @ normal(torch.stack([projected[n]["audio"] for n in sounds]), dim=1).T
    right = [0, 0, 0, 1, 2, 3]
    places = [(row >= row[item]).sum() - 1 for row, item in zip(similar, right, strict=True)]
    assert scores["test/t2a/R@1"] == pytest.approx(sum(int(place) == 0 for place in places) / 6)
    assert scores["test/a2t/R@5"] == 1 and scores["test/t2a/R@5"] == 1, "each has an answer among five"


def test_the_reports_examples_are_those_with_a_picture_and_a_text(tmp_path: Path) -> None:
    write_holes(tmp_path / "data", count=60)
    done = run_tiny(tmp_path / "store", *on(tmp_path / "data", "stages.rounds=[1, 0]"))
    place = Place(root=str(tmp_path / "data"), device="cpu")
    stage = done.bench.stage(done.keys[-1])
    grid = retrieval_grid(done.checkpoint(2), stage=stage, bench=done.bench, place=place)
    examples = done.bench.examples(stage, place, "test")
    told = {e.captions[0] for e in examples if e.has("image") and e.has("text")}
    assert len(told) < len(examples) and {row["query"] for row in grid} == told
    assert all(result["caption"] in told for row in grid for result in row["results"])
