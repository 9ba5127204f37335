"""The encoder of a sensor's signals: a stem that is three layers of PyTorch's own, blocks that are cut anywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn

from lwfed.catalog.encoders.timeseries import DEFAULTS
from lwfed.cost.architectures import by_formulas
from lwfed.data.inputs import settings_for
from lwfed.models.build import initial_tensors, input_settings, load, skeleton
from lwfed.models.families import family_of
from lwfed.models.inspect import count
from lwfed.models.multimodal import Multimodal
from lwfed.models.pretrained import pretrained_tensors
from lwfed.models.protocol import Encoder
from lwfed.plan.units import units_of
from lwfed.spec.model import EncoderSpec, ModelSpec
from lwfed.types.errors import DataError
from lwfed.types.modalities import MODALITIES, Modality, retrieval_task
from tests.unit.models import small


def whole(**config: Any) -> tuple[Multimodal, Encoder]:
    encoder = small.timeseries(config={**small.TIMESERIES, **config})
    model = ModelSpec.model_validate(
        {"encoders": {"gyroscope": encoder}, "objective": {"kind": "supervised"}, "projection": small.PROJECTION}
    )
    depth = {"gyroscope": small.whole_depth(encoder)}
    tensors = initial_tensors(model, units=units_of(model, depth), depth=depth, num_classes=2, seed="0")
    module = load(skeleton(model, depth=depth, num_classes=2), tensors).eval()
    return module, module.encoder("gyroscope")


def windows(length: int = 40, axes: int = 3) -> torch.Tensor:
    return torch.randn(5, length, axes, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("blocks", ["transformer", "gru"])
def test_it_is_cut_anywhere(blocks: str) -> None:
    _, encoder = whole(blocks=blocks)
    with torch.no_grad():
        state = encoder.embed(windows())
        expected = encoder.feature(state, start=0)
        assert state.tokens.shape == (5, 10, 24) and expected.shape == (5, 24)
        for cut in range(len(encoder.blocks) + 1):
            middle = encoder.advance(state, start=0, stop=cut)
            assert torch.equal(encoder.feature(middle, start=cut), expected)
            assert torch.equal(encoder.feature(middle, start=cut, how="absorbed"), expected), "no token is the feature"


@pytest.mark.parametrize("length", [40, 43])
def test_the_stem_is_convolutions_relu_and_pooling(length: int) -> None:
    _, encoder = whole(length=length)
    stem: Any = encoder.stem
    layers = [layer for conv in stem.convolutions for layer in (conv, nn.ReLU(), nn.MaxPool1d(2))]
    with torch.no_grad():
        expected = nn.Sequential(*layers)(windows(length).transpose(1, 2)).transpose(1, 2) + stem.positions
        assert torch.equal(encoder.embed(windows(length)).tokens, expected)
    assert [tuple(conv.weight.shape) for conv in stem.convolutions] == [(16, 3, 5), (24, 16, 5)]


def test_a_gru_block_is_pytorch_s_with_a_norm_and_a_residual() -> None:
    _, encoder = whole(blocks="gru")
    block: Any = encoder.blocks[0]
    with torch.no_grad():
        tokens = encoder.embed(windows()).tokens
        assert torch.equal(block(tokens), tokens + block.gru(block.norm(tokens))[0])
    assert not block.gru.bias_ih_l0.any() and not block.gru.bias_hh_l0.any() and block.gru.weight_hh_l0.any()


def test_a_seeded_stem_keeps_the_signal_s_size() -> None:
    _, encoder = whole(**{key: DEFAULTS[key] for key in ("channels", "length", "num_heads")})
    with torch.no_grad():
        values = encoder.embed(windows(128)).tokens
    assert 0.1 < float(values.std()) < 10


@pytest.mark.parametrize("blocks", ["transformer", "gru"])
def test_every_parameter_has_a_gradient(blocks: str) -> None:
    module, _ = whole(blocks=blocks)
    module.train()
    module.classify(module({"gyroscope": windows()})).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in module.parameters())


def test_sizes_come_from_the_config() -> None:
    assert input_settings(EncoderSpec(family="timeseries")) == {"length": 128, "axes": 3}
    assert small.whole_depth(EncoderSpec(family="timeseries")) == 6
    assert input_settings(small.timeseries(config={"axes": 6, "length": 64})) == {"length": 64, "axes": 6}
    _, encoder = whole(axes=6, kernel=3, channels=[8])
    assert encoder.embed(windows(axes=6)).tokens.shape == (5, 20, 8)
    family = family_of(small.timeseries())
    assert family.library_config(small.timeseries(), depth=1)["depth"] == 1


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"dept": 3}, "did you mean `depth`"),
        ({"hidden": 3}, "known: length, axes"),
        ({"length": "long"}, "`config.length` must be an integer"),
        ({"length": 1}, "from 2 to"),
        ({"length": 4}, "from 1 to 2 convolutions"),
        ({"channels": []}, "from 1 to 7 convolutions"),
        ({"channels": [8, 0]}, "`config.channels` must be from 1 to"),
        ({"channels": "many"}, "`config.channels` must be integers"),
        ({"channels": [8, 30]}, "must be a multiple of `config.num_heads`, 4"),
        ({"kernel": 4}, "must be odd"),
        ({"axes": 0}, "`config.axes` must be from 1"),
        ({"blocks": "lstm"}, "must be transformer or gru"),
        ({"blocks": 3}, "`config.blocks` must be text"),
        ({"depth": 0}, "from 1 to 1000"),
        ({"depth": True}, "must be an integer"),
        ({"mlp_ratio": -1.0}, "above 0"),
    ],
)
def test_a_wrong_config_is_refused_by_name(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        EncoderSpec(family="timeseries", config=config)


def test_a_further_sensor_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    encoders = {"gyroscope": small.timeseries(), "thermometer": small.timeseries(config={"axes": 1, "depth": 2})}
    with pytest.raises(ValidationError, match="encodes `accelerometer` or `gyroscope` or `series`, not `thermometer`"):
        ModelSpec.model_validate({"encoders": encoders})
    monkeypatch.setitem(cast(dict[str, Modality], MODALITIES), "thermometer", Modality("series", "temp"))
    model = ModelSpec.model_validate({"encoders": encoders})
    settings = settings_for({m: input_settings(encoder) for m, encoder in model.encoders.items()})
    assert settings.windows == {"gyroscope": (40, 3), "thermometer": (128, 1)}
    module = skeleton(model, depth={"gyroscope": 3, "thermometer": 2}, num_classes=None)
    assert module.encoder("thermometer").stem.convolutions[0].in_channels == 1  # type: ignore[index, union-attr]
    assert retrieval_task("thermometer", "gyroscope") == "temp2gyr"


def write_weights(folder: Path, **config: Any) -> EncoderSpec:
    """Writes weights of the small encoder; returns an encoder that starts from them."""
    encoder = small.timeseries()
    library = family_of(encoder).library_config(encoder, depth=3)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**library, **config}))
    module = family_of(encoder).build(encoder, depth=None)
    save_file({name: tensor.detach() for name, tensor in module.state_dict().items()}, folder / "model.safetensors")
    return EncoderSpec(family="timeseries", weights=str(folder))


def test_weights_bring_their_config(tmp_path: Path) -> None:
    encoder = write_weights(tmp_path)
    assert family_of(encoder).config(encoder) == family_of(encoder).config(small.timeseries())
    formulas = by_formulas(encoder)
    assert formulas is not None and formulas == by_formulas(small.timeseries())
    shallow = encoder.model_copy(update={"config": {"depth": 2}})
    assert small.whole_depth(shallow) == 2


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "distilbert"}, "are a distilbert, not a timeseries"),
        ({"depth": "many"}, "config.json of .* is wrong: `config.depth` must be an integer"),
        ({"kernel": 4}, "config.json of .* is wrong: `config.kernel` must be odd"),
    ],
)
def test_weights_of_another_model_are_refused(config: dict[str, Any], words: str, tmp_path: Path) -> None:
    encoder = write_weights(tmp_path, **config)
    assert by_formulas(encoder) is None, "so that it is built, and refused"
    with pytest.raises(DataError, match=words):
        count(encoder)


def test_tensors_of_another_model_are_refused(tmp_path: Path) -> None:
    encoder = write_weights(tmp_path)
    save_file({"embeddings.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match=r"have the tensor embeddings\.weight, which no timeseries has"):
        pretrained_tensors(encoder, modality="gyroscope", shapes={})


def test_what_is_for_other_families_is_refused() -> None:
    with pytest.raises(ValidationError, match="`arch` is not for timeseries"):
        EncoderSpec(family="timeseries", arch="vit_tiny_patch16_224")
    with pytest.raises(ValidationError, match="`normalise` is not for timeseries"):
        EncoderSpec.model_validate({"family": "timeseries", "normalise": {"mean": [0.0], "std": [1.0]}})
