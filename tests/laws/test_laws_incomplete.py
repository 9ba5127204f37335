"""Laws of examples that lack a modality: each counts for what it has, and for nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from lwfed.data.batches import Batch, eval_batches, train_batches
from lwfed.data.incomplete import lacked_by
from lwfed.data.prefix_inputs import Inputs
from lwfed.data.protocol import Example, Source
from lwfed.models.build import initial_tensors, load, skeleton, tensor_specs
from lwfed.models.multimodal import Multimodal
from lwfed.objectives.contrastive import common_rows
from lwfed.plan.stages import StagePlan
from lwfed.round.batching import part
from lwfed.round.losses import batch_loss, received_heads
from lwfed.round.workbench import Workbench
from lwfed.run.tasks import Place
from tests.holes import OBJECTIVES, on, write_holes
from tests.kept import batches_of as kept_batches
from tests.kept import entry_of, kept_whole
from tests.tiny import ONE_STAGE, begun

ALIGNED = {
    "contrastive": "model.objective={kind: contrastive, alignment: {weight: 0.5}}",
    "supervised": "model.objective={kind: supervised, hidden: 12, alignment: {weight: 0.5}}",
}
WHOLE = (*ONE_STAGE, "model.encoders.audio.blocks_per_stage=2")


class Ready(NamedTuple):
    bench: Workbench
    plan: StagePlan
    source: Source
    examples: list[Example]
    settings: Any


def ready(folder: Path, *overrides: str) -> Ready:
    write_holes(folder / "data")
    bench, stage, _ = begun(folder / "store", *on(folder / "data", *WHOLE, *overrides))
    place = Place(root=str(folder / "data"), device="cpu")
    return Ready(
        bench, stage.plan, bench.data(stage, place), bench.examples(stage, place, "train"), bench.inputs(stage)
    )


@pytest.fixture(scope="module", params=OBJECTIVES)
def given(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ready:
    return ready(tmp_path_factory.mktemp(request.param), *OBJECTIVES[request.param])


def model_of(plan: StagePlan, *, lacks: tuple[str, ...] = ()) -> Multimodal:
    units = [unit for unit in plan.present if unit.split(".")[0] not in lacks]
    classes = 2 if plan.model.objective.kind == "supervised" else None
    tensors = initial_tensors(plan.model, units=units, depth=plan.depth, num_classes=classes, seed="7")
    return load(skeleton(plan.model, depth=plan.depth, num_classes=classes, lacks=lacks), tensors)


def batches_of(given: Ready, *, size: int = 8, count: int = 2, **choices: Any) -> list[Batch]:
    return list(
        train_batches(
            given.source, examples=given.examples, settings=given.settings, batch_size=size, seed="5eed",
            first_view=0, augment=False, workers=0, num_batches=count, **choices,
        )
    )  # fmt: skip


def judge(module: Multimodal, batch: Batch, plan: StagePlan, **choices: Any) -> Tensor:
    torch.manual_seed(0)  # of the dropout
    return batch_loss(module, batch, model=plan.model, cut={}, **choices)


def gradients(module: Multimodal, loss: Tensor) -> dict[str, Tensor | None]:
    module.zero_grad(set_to_none=True)
    loss.backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in module.named_parameters()}


def same(a: Mapping[str, Tensor | None], b: Mapping[str, Tensor | None]) -> bool:
    return all((a[n] is None) == (b[n] is None) and (a[n] is None or torch.equal(a[n], b[n])) for n in a)  # type: ignore[arg-type]


def test_a_batch_has_the_inputs_of_those_that_have_them(given: Ready) -> None:
    for batch in batches_of(given):
        by_id = {example.id: example for example in given.examples}
        for modality in ("audio", "image", "text"):
            having = [n for n, name in enumerate(batch.ids) if by_id[name].has(modality)]
            value = batch.inputs[modality]
            assert len(value["ids"] if modality == "text" else value) == len(having)
            rows = batch.rows.get(modality)
            assert (rows is None) == (len(having) == len(batch.ids)) and (rows is None or rows.tolist() == having)
    whole = {b.ids: b for b in eval_batches(
        given.source, examples=given.examples, settings=given.settings, batch_size=1, workers=0
    )}  # fmt: skip
    (batch, *_) = batches_of(given)
    for place, name in enumerate(batch.ids):
        alone = whole[(name,)]
        assert alone.rows == {} and alone.inputs.keys() == {m for m in batch.inputs if by_id[name].has(m)}
        if "image" in alone.inputs:
            rows = batch.rows.get("image", torch.arange(len(batch.ids))).tolist()
            assert torch.equal(batch.inputs["image"][rows.index(place)], alone.inputs["image"][0])


def test_a_modality_of_a_single_example_is_not_trained_but_is_evaluated(given: Ready) -> None:
    lone = [e for e in given.examples if not e.has("audio")][:3] + [e for e in given.examples if e.has("audio")][:1]
    training = {
        "batch_size": 4, "seed": "5eed", "first_view": 0, "augment": False, "workers": 0, "num_batches": 1
    }  # fmt: skip
    (batch,) = train_batches(given.source, examples=lone, settings=given.settings, **training)
    assert batch.inputs.keys() == {"image", "text"} and "audio" not in batch.rows
    (judged,) = eval_batches(given.source, examples=lone, settings=given.settings, batch_size=4, workers=0)
    assert judged.rows["audio"].tolist() == [3]


def test_nothing_is_read_for_those_that_lack_it(given: Ready) -> None:
    read: list[tuple[str, str]] = []

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(given.source, name)

        def image(self, example: Example) -> Any:
            read.append(("image", example.id))
            return given.source.image(example)

        def waveform(self, example: Example) -> Any:
            read.append(("audio", example.id))
            return given.source.waveform(example)

    batches_of(given._replace(source=Watched()), count=2)
    assert len(read) > 10
    assert all(example.has(m) for m, name in read for example in given.examples if example.id == name)


def test_a_complete_batch_is_the_same_if_all_rows_are_named(given: Ready) -> None:
    """The loss bit for bit; gradients but for rounding, since their strides differ."""
    complete = [e for e in given.examples if not lacked_by(e, given.plan.model.modalities)]
    (batch,) = batches_of(given._replace(examples=complete), size=6, count=1)
    assert batch.rows == {} and len(batch.ids) == 6
    every = replace(batch, rows=dict.fromkeys(batch.inputs, torch.arange(6)))
    module = model_of(given.plan).train()
    losses = [judge(module, one, given.plan) for one in (batch, every)]
    assert torch.equal(*losses)
    one, other = (gradients(module, loss) for loss in losses)
    assert all(gradient is not None for gradient in one.values())
    torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)


def by_hand(module: Multimodal, batch: Batch, plan: StagePlan) -> Tensor:
    """Computes the loss of a batch from the projections of each modality, example by example."""
    projections = module(batch.inputs)
    at = {m: batch.rows.get(m, torch.arange(len(batch.ids))).tolist() for m in projections}
    if plan.model.objective.kind == "contrastive":
        losses = []
        for a, b in combinations(sorted(projections), 2):
            both = [n for n in range(len(batch.ids)) if n in at[a] and n in at[b]]
            if len(both) > 1:
                ours, theirs = (normalize(projections[m][[at[m].index(n) for n in both]], dim=-1) for m in (a, b))
                scores = ours @ theirs.T / plan.model.objective.temperature
                target = torch.arange(len(both))
                losses.append((cross_entropy(scores, target) + cross_entropy(scores.T, target)) / 2)
        return torch.stack(losses).mean()
    width = plan.model.projection.out
    filled = [
        torch.cat([projections[m][at[m].index(n)] if n in at[m] else torch.zeros(width) for m in sorted(at)])
        for n in range(len(batch.ids))
    ]
    assert module.prediction is not None and batch.labels is not None
    return cross_entropy(module.prediction(torch.stack(filled)), batch.labels)


def test_losses_are_those_over_the_rows(given: Ready) -> None:
    module = model_of(given.plan).eval()
    for batch in batches_of(given):
        assert batch.rows, "it has holes"
        with torch.no_grad():
            torch.testing.assert_close(judge(module, batch, given.plan), by_hand(module, batch, given.plan))


@pytest.mark.parametrize("kind", ALIGNED)
def test_each_modality_is_aligned_over_its_own_rows(kind: str, tmp_path: Path) -> None:
    given = ready(tmp_path, ALIGNED[kind])
    (batch,) = batches_of(given, count=1)
    module = model_of(given.plan).eval()
    received = received_heads(model_of(given.plan), given.plan.model)
    with torch.no_grad():
        for head in (module.head(m) for m in module.modalities):
            head.out.linear.weight.add_(0.1)
        total = judge(module, batch, given.plan, received=received)
        expected = by_hand(module, batch, given.plan)
        for m in batch.inputs:
            feature = module.feature(m, batch.inputs[m])
            cosine = torch.nn.functional.cosine_similarity(module.head(m)(feature), received[m](feature), dim=-1)
            expected = expected + 0.5 * (1 - cosine).mean()
    torch.testing.assert_close(total, expected)


def test_a_modality_learns_nothing_from_examples_that_lack_it(given: Ready) -> None:
    """Their other modalities' content changes no bit of its gradients; norms do not mix examples here."""
    (batch,) = batches_of(given, count=1)
    module = model_of(given.plan).eval()
    before = gradients(module, judge(module, batch, given.plan))
    having = set(batch.rows["audio"].tolist())
    places = batch.rows.get("image", torch.arange(len(batch.ids))).tolist()
    lacking = [n for n, place in enumerate(places) if place not in having]
    assert lacking
    pixels = batch.inputs["image"].clone()
    pixels[lacking] += 1
    changed = replace(batch, inputs={**batch.inputs, "image": pixels})
    after = gradients(module, judge(module, changed, given.plan))
    of_audio = [name for name in before if name.startswith("audio.")]
    assert same({n: before[n] for n in of_audio}, {n: after[n] for n in of_audio})
    assert all(before[name] is not None for name in of_audio if ".blocks." in name)
    assert not same(before, after), "images learn from them"


@pytest.mark.parametrize("given", ["supervised"], indirect=True)
def test_missing_projections_are_zeros(given: Ready) -> None:
    module = model_of(given.plan).eval()
    parts = {m: torch.randn(4, 8, generator=torch.Generator().manual_seed(n)) for n, m in enumerate(module.modalities)}
    rows = {"audio": torch.tensor([1, 3])}
    some = {**parts, "audio": parts["audio"][:2]}
    zeros = torch.zeros(4, 8)
    zeros[[1, 3]] = parts["audio"][:2]
    assert torch.equal(module.classify(some, rows=rows, size=4), module.classify({**parts, "audio": zeros}))
    without = {m: part for m, part in parts.items() if m != "audio"}
    assert torch.equal(module.classify(without, size=4), module.classify({**parts, "audio": torch.zeros(4, 8)}))


def test_a_model_without_an_encoder_is_the_rest_of_the_whole_one(given: Ready) -> None:
    whole, fewer = model_of(given.plan), model_of(given.plan, lacks=("audio",))
    assert fewer.modalities == ("image", "text") and whole.modalities == ("audio", "image", "text")
    specs = tensor_specs(whole)
    assert tensor_specs(fewer) == {name: spec for name, spec in specs.items() if not name.startswith("audio.")}
    examples = [e for e in given.examples if not e.has("audio")]
    (batch,) = eval_batches(given.source, examples=examples, settings=given.settings, batch_size=8, workers=0)
    losses = [judge(module.eval(), batch, given.plan) for module in (whole, fewer)]
    assert torch.equal(*losses)
    grads = [gradients(module, loss) for module, loss in zip((whole, fewer), losses, strict=True)]
    assert same({name: grads[0][name] for name in grads[1]}, grads[1])
    assert all(value is None for name, value in grads[0].items() if name.startswith("audio."))


def test_a_batch_that_teaches_nothing_leaves_every_parameter_alone(given: Ready) -> None:
    (batch,) = batches_of(given, size=2, count=1)
    empty = replace(batch, inputs={}, rows={})
    module = model_of(given.plan).train()
    loss = judge(module, empty, given.plan)
    assert float(loss.detach()) == 0 and all(gradient is None for gradient in gradients(module, loss).values())
    if given.plan.model.objective.kind == "contrastive":
        apart = {"image": torch.tensor([0, 1]), "audio": torch.tensor([2, 3])}
        sounds = batches_of(given)[0].inputs["audio"][:2]
        alone = replace(
            batch, inputs={"audio": sounds, "image": torch.zeros(2, 3, 16, 16)}, rows=apart, ids=("a", "b", "c", "d")
        )
        loss = judge(module, alone, given.plan)
        assert float(loss.detach()) == 0 and all(gradient is None for gradient in gradients(module, loss).values())


def test_common_rows() -> None:
    a, b = torch.tensor([0, 2, 5, 7]), torch.tensor([1, 2, 7, 8])
    first, second = common_rows(a, b)
    assert first is not None and second is not None
    assert a[first].tolist() == b[second].tolist() == [2, 7]
    assert common_rows(None, None) == (None, None)
    found = common_rows(None, b)
    assert found[1] is None and found[0] is not None and found[0].tolist() == b.tolist()


def test_parts_of_a_batch_have_its_examples(given: Ready) -> None:
    """Micro-batches of classified examples add up to the batch, as long as each keeps its modalities."""
    (batch,) = batches_of(given, size=16, count=1)
    parts = [part(batch, index, 2) for index in range(2)]
    assert sum((p.ids for p in parts), ()) == batch.ids
    for modality, value in batch.inputs.items():
        own = [p.inputs[modality] for p in parts if modality in p.inputs]
        keys = value.keys() if isinstance(value, dict) else [None]
        for key in keys:
            joined = torch.cat([one if key is None else one[key] for one in own])
            assert torch.equal(joined, value if key is None else value[key])
        starts = (0, len(parts[0].ids))
        rows = [p.rows.get(modality, torch.arange(len(p.ids))) + start for p, start in zip(parts, starts, strict=True)]
        assert torch.cat(rows).tolist() == batch.rows.get(modality, torch.arange(len(batch.ids))).tolist()
    module = model_of(given.plan).eval()
    if given.plan.model.objective.kind == "supervised":
        with torch.no_grad():
            total = sum(judge(module, p, given.plan) * len(p.ids) / len(batch.ids) for p in parts)
            torch.testing.assert_close(total, judge(module, batch, given.plan))


def test_a_part_keeps_no_modality_of_a_single_example() -> None:
    batch = Batch(
        inputs={"audio": torch.arange(4.0), "image": torch.arange(6.0)}, labels=torch.arange(6),
        ids=tuple("abcdef"), rows={"audio": torch.tensor([0, 3, 4, 5])},
    )  # fmt: skip
    first, second = (part(batch, index, 2) for index in range(2))
    assert first.inputs.keys() == {"image"} and first.rows == {}
    assert second.inputs["audio"].tolist() == [1, 2, 3] and second.rows == {}, "all three have it"
    thirds = [part(batch, index, 3) for index in range(3)]
    assert [sorted(one.inputs) for one in thirds] == [["image"], ["image"], ["audio", "image"]]
    halves = part(replace(batch, rows={"audio": torch.tensor([0, 1, 4, 5])}), 0, 2)
    assert halves.inputs["audio"].tolist() == [0, 1] and halves.rows["audio"].tolist() == [0, 1]


def test_rows_with_holes_find_their_cached_inputs(given: Ready, tmp_path: Path) -> None:
    """The pixels and samples themselves are kept, as tokens: what comes back shows which input a row got."""
    cached = {}
    for modality in ("audio", "image"):
        inputs = Inputs(modality, tuple(given.examples), given.settings, "5eed", False, 1)
        assert len(inputs) == sum(example.has(modality) for example in given.examples)
        raw = ((v.flatten(1)[:, None, :], None) for v in kept_batches(inputs, given.source, batch_size=4))
        cached[modality] = kept_whole(tmp_path, entry_of(inputs), raw)
    without = tuple(example for example in given.examples if example.has("image"))
    assert replace(cached["image"].inputs, examples=without).digest == cached["image"].inputs.digest
    for one, other in zip(batches_of(given), batches_of(given, cached=cached), strict=True):
        assert one.ids == other.ids and one.rows.keys() == other.rows.keys()
        for modality in cached:
            assert torch.equal(one.inputs[modality].flatten(1), other.inputs[modality]["tokens"].flatten(1))
