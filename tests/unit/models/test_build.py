"""Laws of building, seeding and loading a model."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from lwfed.models.build import initial_tensors, load, set_trained, skeleton, tensor_specs
from lwfed.plan.units import units_of
from lwfed.spec.model import EncoderSpec, ModelSpec
from lwfed.types.errors import CheckpointError
from lwfed.types.tensors import unit_of
from tests.unit.models import small

DEPTH = {"image": 4, "text": 3}


def _initial(model: ModelSpec, depth: dict[str, int], *, seed: str = "0") -> dict[str, torch.Tensor]:
    classes = 5 if model.objective.kind == "supervised" else None
    units = units_of(model, depth)
    return initial_tensors(model, units=units, depth=depth, num_classes=classes, seed=seed)


def test_names_are_canonical_and_units_are_the_plans() -> None:
    for model, depth in ((small.contrastive(), DEPTH), (small.supervised(), {"image": 2, "audio": 1})):
        specs = tensor_specs(skeleton(model, depth=depth, num_classes=5))
        assert {unit_of(name) for name in specs} == set(units_of(model, depth))
        assert list(specs) == sorted(specs)
    expected = {
        "image.stem.patch_embed.proj.weight", "image.stem.cls_token", "image.stem.pos_embed", "image.norm.weight",
        "image.blocks.1.attn.qkv.weight", "audio.stem.cls_token", "audio.stem.patch_embeddings.projection.weight",
        "audio.blocks.0.attention.q_proj.weight", "audio.norm.weight", "image.projection.hidden.1.linear.weight",
        "image.projection.hidden.0.norm.running_mean", "audio.projection.out.norm.num_batches_tracked",
        "prediction.hidden.bias", "prediction.out.weight",
    }  # fmt: skip
    assert expected <= set(specs)
    assert specs["audio.projection.out.norm.running_var"].buffer
    assert specs["audio.projection.out.norm.num_batches_tracked"].dtype == "I64"
    assert "audio.projection.out.norm.weight" not in specs and not specs["image.norm.weight"].buffer


def test_golden_parameters_of_the_papers_model() -> None:
    model = ModelSpec()
    specs = tensor_specs(skeleton(model, depth={"image": 12, "text": 6}, num_classes=None))
    parameters = {name: spec.numel for name, spec in specs.items() if not spec.buffer}
    assert sum(parameters.values()) == 111_503_808
    assert sum(n for name, n in parameters.items() if ".projection." in name) == 39_616_512
    late = {"image.blocks.2", "image.blocks.3", "image.norm", "image.projection", "text.blocks.1", "text.projection"}
    assert sum(n for name, n in parameters.items() if unit_of(name) in late) == 47_594_496


def test_a_unit_starts_the_same_whatever_is_present() -> None:
    model = small.contrastive()
    whole = _initial(model, DEPTH)
    for unit, depth in (("text.blocks.1", {"image": 1, "text": 2}), ("image.stem", {"image": 1, "text": 1})):
        alone = initial_tensors(model, units=[unit], depth=depth, num_classes=None, seed="0")
        assert {unit_of(name) for name in alone} == {unit}
        assert all(torch.equal(tensor, whole[name]) for name, tensor in alone.items())
    assert not torch.equal(whole["text.blocks.1.ffn.lin1.weight"], whole["text.blocks.2.ffn.lin1.weight"])
    other = _initial(model, DEPTH, seed="1")
    assert not torch.equal(whole["image.stem.pos_embed"], other["image.stem.pos_embed"])


def test_initialisation_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    _initial(small.contrastive(), DEPTH)
    assert torch.equal(before, torch.get_rng_state())


def test_initial_values_are_those_of_vit_bert_and_torch() -> None:
    big = EncoderSpec(family="vit", arch="vit_tiny_patch16_224", config={"depth": 1, "init_values": 0.25})
    model = ModelSpec.model_validate(
        {
            "encoders": {"image": big, "audio": small.ast()},
            "projection": {"hidden": 512, "out": 64},
            "objective": {"kind": "supervised"},
        }
    )
    tensors = _initial(model, {"image": 1, "audio": 1})
    weight = tensors["image.blocks.0.attn.qkv.weight"]
    assert abs(float(weight.std()) - 0.02) < 1e-3 and float(weight.mean()).__abs__() < 1e-3
    assert not tensors["image.blocks.0.attn.qkv.bias"].any()
    assert torch.equal(tensors["image.norm.weight"], torch.ones(192)) and not tensors["image.norm.bias"].any()
    assert torch.equal(tensors["image.blocks.0.ls1.gamma"], torch.full((192,), 0.25))
    assert float(tensors["audio.stem.position_embeddings"].std()) > 0
    head = tensors["image.projection.hidden.1.linear.weight"]
    assert float(head.abs().max()) <= 512**-0.5 and abs(float(head.std()) - 512**-0.5 / 3**0.5) < 1e-3
    assert torch.equal(tensors["image.projection.out.norm.running_var"], torch.ones(64))
    assert tensors["image.projection.out.norm.num_batches_tracked"] == 0
    assert tensors["prediction.out.bias"].any()
    text = _initial(small.contrastive(), DEPTH)["text.stem.word_embeddings.weight"]
    assert not text[0].any() and text[1:].all(1).any()


def test_load_assigns_without_a_copy_and_leaves_nothing_on_meta() -> None:
    model = small.contrastive()
    tensors = _initial(model, DEPTH)
    module = load(skeleton(model, depth=DEPTH, num_classes=None), tensors)
    assert all(tensor.data_ptr() == tensors[name].data_ptr() for name, tensor in module.state_dict().items())
    assert all(isinstance(parameter, torch.nn.Parameter) for parameter in module.parameters())
    assert set(dict(module.named_buffers())) == {n for n, s in tensor_specs(module).items() if s.buffer}
    assert module(small.inputs())["text"].shape == (5, 8)


def test_load_refuses_other_names_shapes_and_types() -> None:
    model = small.contrastive()
    tensors = _initial(model, DEPTH)
    name = "image.blocks.0.attn.qkv.bias"
    wrong = {
        "lacks": {key: value for key, value in tensors.items() if key != name},
        "unknown": {**tensors, "image.blocks.9.attn.qkv.bias": tensors[name]},
        "not F32": {**tensors, name: tensors[name][:-1]},
        "I64": {**tensors, name: tensors[name].long()},
    }
    for words, given in wrong.items():
        with pytest.raises(CheckpointError, match=words):
            load(skeleton(model, depth=DEPTH, num_classes=None), given)


def test_only_trained_units_have_gradients_dropout_and_moving_statistics() -> None:
    model = small.contrastive()
    tensors = _initial(model, DEPTH)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    module = load(skeleton(model, depth=DEPTH, num_classes=None), tensors)
    trained = ["image.blocks.3", "image.norm", "image.projection", "text.blocks.2"]
    set_trained(module, trained=trained)
    for name, parameter in module.named_parameters():
        assert parameter.requires_grad == (unit_of(name) in trained)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        out = module(small.inputs(), cut={"image": 3, "text": 2})
        again = module(small.inputs(), cut={"image": 3, "text": 2})
    assert not torch.equal(out["image"], again["image"])  # dropout of the trained head
    sum(value.square().sum() for value in out.values()).backward()  # type: ignore[union-attr]
    for name, parameter in module.named_parameters():
        assert (parameter.grad is not None) == (unit_of(name) in trained)
    moved = {name for name, tensor in tensors.items() if not torch.equal(tensor, before[name])}
    assert {unit_of(name) for name in moved} == {"image.projection"}


def test_prefix_and_suffix_are_project() -> None:
    model = small.contrastive()
    module = load(skeleton(model, depth=DEPTH, num_classes=None), _initial(model, DEPTH)).eval()
    batch = small.inputs()
    for modality, cut in (("image", 0), ("image", 2), ("text", 3)):
        state = module.prefix(modality, batch[modality], cut=cut)
        assert not state.tokens.requires_grad
        whole = module.project(modality, batch[modality])
        assert whole.requires_grad
        assert torch.equal(module.project(modality, state._asdict(), cut=cut), whole)
        assert torch.equal(module.project(modality, batch[modality], cut=cut), whole)


def test_classify_takes_modalities_in_any_order() -> None:
    model = small.supervised()
    depth = {"image": 1, "audio": 1}
    module = load(skeleton(model, depth=depth, num_classes=5), _initial(model, depth)).eval()
    projections = module(small.inputs())
    logits = module.classify(projections)
    assert logits.shape == (5, 5)
    assert torch.equal(logits, module.classify(dict(reversed(list(projections.items())))))


def test_an_image_text_model_imports_no_audio() -> None:
    code = (
        "import sys; from lwfed.spec.model import ModelSpec; from lwfed.models.build import skeleton\n"
        "skeleton(ModelSpec(), depth={'image': 1, 'text': 1}, num_classes=None)\n"
        "assert 'transformers.models.distilbert.modeling_distilbert' in sys.modules\n"
        "assert not [n for n in sys.modules if 'audio_spectrogram' in n or n == 'lwfed.models.encoders.ast']\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
