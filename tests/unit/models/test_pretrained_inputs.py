"""What travels with pretrained weights besides tensors: tokenizer, normalisation, positions of another length."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from lwfed.catalog.encoder import AUDIOSET, HALF, Normalise, encoder_family
from lwfed.cost.architectures import architecture_of
from lwfed.data.inputs import settings_for
from lwfed.data.transforms import normalise_pixels
from lwfed.export.library import to_library
from lwfed.models.build import initial_tensors, input_settings, skeleton
from lwfed.models.identity import weights_version
from lwfed.models.inspect import count
from lwfed.models.pretrained import resolved
from lwfed.models.weights import inputs_text, normalise_of, tokenizer_of
from lwfed.spec.model import EncoderSpec
from lwfed.types.errors import DataError
from tests.unit.models import small

IMAGENET = Normalise((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SOUNDS = Normalise((-5.5,), (3.25,))


def vit_folder(root: Path, **normalise: Any) -> Path:
    """Weights of a ViT as timm saves them, with the given keys in `pretrained_cfg`."""
    import timm
    from timm.models import save_for_hf

    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, **small.VIT)
    save_for_hf(model, root, model_args=small.VIT, safe_serialization=True)
    path = root / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    kept = {key: value for key, value in config["pretrained_cfg"].items() if key not in ("mean", "std")}
    path.write_text(json.dumps({**config, "pretrained_cfg": {**kept, **normalise}}), encoding="utf-8")
    return root


def ast_folder(root: Path, **preprocessor: Any) -> Path:
    from transformers import ASTConfig, ASTModel

    ASTModel(ASTConfig(**small.AST)).save_pretrained(root)
    if preprocessor:
        (root / "preprocessor_config.json").write_text(json.dumps(preprocessor), encoding="utf-8")
    return root


def text_folder(root: Path, *, tokenizer: bool) -> Path:
    from transformers import ByT5Tokenizer, DistilBertConfig, DistilBertModel

    DistilBertModel(DistilBertConfig(**{**small.DISTILBERT, "vocab_size": 300})).save_pretrained(root)
    if tokenizer:
        ByT5Tokenizer(extra_ids=0).save_pretrained(root)
    return root


def test_text_weights_without_a_tokenizer_are_refused_unless_one_is_named(tmp_path: Path) -> None:
    bare, whole = (text_folder(tmp_path / name, tokenizer=name == "whole") for name in ("bare", "whole"))
    encoder = small.distilbert(weights=str(bare), config={})
    for use in (tokenizer_of, resolved, input_settings):
        with pytest.raises(DataError, match="tokenizer") as caught:
            use(encoder)
        assert "model.encoders.text.tokenizer" in caught.value.remedy
    alone = small.distilbert(weights=str(bare / "model.safetensors"))
    with pytest.raises(DataError, match="tokenizer"):
        tokenizer_of(alone)
    for named in ("bytes", str(whole)):
        assert tokenizer_of(small.distilbert(weights=str(bare), config={}, tokenizer=named)) == named
    for weights in (whole, whole / "model.safetensors"):
        assert tokenizer_of(small.distilbert(weights=str(weights), config={})) == str(weights)
    assert tokenizer_of(small.distilbert()) is None, "without weights: bytes"
    assert tokenizer_of(small.vit(weights=str(tmp_path))) is None, "images have none"


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        ({}, HALF),
        ({"mean": list(IMAGENET.mean), "std": list(IMAGENET.std)}, IMAGENET),
        ({"mean": 0.4, "std": [0.2]}, Normalise((0.4,) * 3, (0.2,) * 3)),
    ],
)
def test_a_vit_takes_timms_mean_and_std(tmp_path: Path, stored: dict[str, Any], wanted: Normalise) -> None:
    encoder = small.vit(weights=str(vit_folder(tmp_path, **stored)), config={})
    assert normalise_of(encoder) == wanted == normalise_of(resolved(encoder))
    settings = settings_for({"image": input_settings(encoder)})
    pixels = torch.arange(0, 256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16)
    for channel, (mean, std) in enumerate(zip(*wanted, strict=True)):
        ours = normalise_pixels(pixels, settings.image_normalise)[0, channel]
        torch.testing.assert_close(ours, (pixels[0, channel].double() / 255 - mean).div(std).float())


def test_the_spec_stands_above_the_weights(tmp_path: Path) -> None:
    folder = vit_folder(tmp_path, mean=[0.1] * 3, std=[0.2] * 3)
    given = {"mean": list(IMAGENET.mean), "std": list(IMAGENET.std)}
    encoder = small.vit(weights=str(folder), config={}, normalise=given)
    assert normalise_of(encoder) == IMAGENET
    assert "0.485 0.456 0.406" in inputs_text({"image": encoder})


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        ({}, AUDIOSET),
        ({"mean": SOUNDS.mean[0], "std": SOUNDS.std[0], "do_normalize": True}, SOUNDS),
        ({"mean": 1.0, "std": 2.0, "do_normalize": False}, Normalise((0.0,), (0.5,))),
    ],
)
def test_an_ast_takes_its_feature_extractors_mean_and_std(
    tmp_path: Path, stored: dict[str, Any], wanted: Normalise
) -> None:
    encoder = small.ast(weights=str(ast_folder(tmp_path, **stored)), config={})
    assert normalise_of(encoder) == wanted == normalise_of(resolved(encoder))


@pytest.mark.parametrize(
    "stored", [{"mean": [0.5, 0.5], "std": [0.5, 0.5]}, {"mean": [0.5] * 3, "std": [0.5, 0.0, 0.5]}]
)
def test_values_that_do_not_fit_images_are_refused(tmp_path: Path, stored: dict[str, Any]) -> None:
    encoder = small.vit(weights=str(vit_folder(tmp_path, **stored)), config={})
    with pytest.raises(DataError, match="normalise"):
        normalise_of(encoder)


@pytest.mark.parametrize(
    ("make", "values"),
    [
        (small.vit, {"mean": [0.5], "std": [0.5]}),
        (small.vit, {"mean": [0.5] * 3, "std": [0.5, 0.5, 0]}),
        (small.ast, {"mean": [0.5] * 3, "std": [0.5] * 3}),
        (small.distilbert, {"mean": [0.5], "std": [0.5]}),
    ],
)
def test_values_in_a_spec_fit_its_encoder(make: Any, values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"normalise|greater than 0"):
        make(normalise=values)


def test_an_export_has_what_the_weights_had(tmp_path: Path) -> None:
    folder = vit_folder(tmp_path, mean=list(IMAGENET.mean), std=list(IMAGENET.std))
    encoder = resolved(small.vit(weights=str(folder), config={}))
    module = skeleton(
        small.contrastive(image=encoder, text=small.distilbert()), depth={"image": 4, "text": 1}, num_classes=None
    )
    tensors: dict[str, Tensor] = {name: torch.zeros(tensor.shape) for name, tensor in module.state_dict().items()}
    _, config = to_library(encoder, tensors, modality="image")
    assert config["pretrained_cfg"]["mean"] == list(IMAGENET.mean)
    assert config["pretrained_cfg"]["std"] == list(IMAGENET.std)


def test_what_decides_inputs_is_part_of_the_weights_version(tmp_path: Path) -> None:
    encoder = small.ast(weights=str(ast_folder(tmp_path, mean=1.0, std=2.0)), config={})
    before = weights_version(encoder)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"mean": 1.0, "std": 3.0}), encoding="utf-8")
    assert weights_version(encoder) != before


def words(folder: Path, *, tokens: str = "a red") -> Path:
    folder.mkdir(exist_ok=True)
    lines = "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *tokens.split()])
    (folder / "vocab.txt").write_text(f"{lines}\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "name",
    ["vocab.txt", "added_tokens.json", "special_tokens_map.json", "tokenizer_config.json", "merges.txt", "bpe.model"],
)
def test_every_file_of_a_tokenizer_is_part_of_the_version(tmp_path: Path, name: str) -> None:
    folder, weights = words(tmp_path / "tokenizer"), words(text_folder(tmp_path / "weights", tokenizer=False))
    encoders = [
        small.distilbert(tokenizer=str(folder)),
        small.distilbert(tokenizer=str(folder / "vocab.txt")),
        small.distilbert(weights=str(weights), config={}),
        small.distilbert(weights=str(weights), config={}, tokenizer=str(folder)),
        small.distilbert(weights="owner/none-such", tokenizer=str(folder)),
    ]
    before = [weights_version(encoder) for encoder in encoders]
    assert all(len(version) == 64 for version in before) and len(set(before)) == 4
    for place in (folder, weights):
        (place / name).write_text("[PAD]\n[UNK]\nred\na\n", encoding="utf-8")
    after = [weights_version(encoder) for encoder in encoders]
    assert not set(before) & set(after)


def test_a_tokenizer_without_a_folder_is_known_by_its_name(tmp_path: Path) -> None:
    assert weights_version(small.distilbert(tokenizer="bytes")) == ""
    assert weights_version(small.distilbert(tokenizer="owner/none-such")) == ""
    weights = words(text_folder(tmp_path / "weights", tokenizer=False))
    encoder = small.distilbert(weights=str(weights), config={}, tokenizer="bytes")
    before = weights_version(encoder)
    words(weights, tokens="red a")
    assert weights_version(encoder) == before, "its tokenizer is not in use"


def test_weights_with_settings_but_no_vocabulary_have_no_tokenizer(tmp_path: Path) -> None:
    folder = words(text_folder(tmp_path / "weights", tokenizer=False))
    encoder = small.distilbert(weights=str(folder), config={})
    assert tokenizer_of(encoder) == str(folder)
    (folder / "vocab.txt").unlink()
    with pytest.raises(DataError, match="no tokenizer"):
        tokenizer_of(encoder)


@pytest.mark.parametrize("modality", ["image", "text", "audio"])
def test_nulls_in_a_config_are_the_librarys_defaults(tmp_path: Path, modality: str) -> None:
    encoder = {"image": small.vit, "text": small.distilbert, "audio": small.ast}[modality](config={})
    make = {"image": vit_folder, "text": lambda root: text_folder(root, tokenizer=True), "audio": ast_folder}[modality]
    path = make(tmp_path / modality) / "config.json"
    config, types = json.loads(path.read_text(encoding="utf-8")), encoder_family(encoder.family).types
    place = config.get("model_args", config)
    place |= dict.fromkeys(set(types) - set(place)) | {"bos_token_id": None} | dict.fromkeys(config.keys() & {"dtype"})
    if modality == "image":
        del place["bos_token_id"]
    path.write_text(json.dumps(config), encoding="utf-8")
    weights = encoder.model_copy(update={"weights": str(path.parent)})
    known = resolved(weights)
    assert None not in known.config.values()
    assert EncoderSpec.model_validate(known.model_dump()) == known
    assert architecture_of(weights, folder=None, count=count).depth == small.whole_depth(known)


def start(encoder: EncoderSpec) -> dict[str, Tensor]:
    model = small.contrastive(audio=encoder, text=small.distilbert())
    return initial_tensors(model, units=["audio.stem"], depth={"audio": 1, "text": 1}, num_classes=None, seed="0")


def test_an_ast_of_another_length_resizes_its_positions(tmp_path: Path) -> None:
    folder = ast_folder(tmp_path)
    saved = load_file(folder / "model.safetensors")["embeddings.position_embeddings"]
    same = start(small.ast(weights=str(folder), config={}))["audio.stem.position_embeddings"]
    assert torch.equal(same, saved) and saved.shape == (1, 2 + 3, 24)
    longer = start(small.ast(weights=str(folder), config={"max_length": 80}))["audio.stem.position_embeddings"]
    assert longer.shape == (1, 2 + 7, 24) and torch.equal(longer[:, :2], saved[:, :2])
    with pytest.raises(DataError, match="do not fit"):
        start(small.ast(weights=str(folder / "model.safetensors"), config={**small.AST, "max_length": 80}))
