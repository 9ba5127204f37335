"""Files of pretrained weights: resolves a folder, a .safetensors file or a hub id to local files, never a pickle."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lwfed.catalog.encoder import LARGEST, Normalise, encoder_family
from lwfed.catalog.stored import HARMLESS
from lwfed.catalog.tokenizers import VOCABULARIES, has_tokenizer
from lwfed.spec.model import EncoderSpec
from lwfed.types.errors import DataError, UnreachableError

if TYPE_CHECKING:  # `lwfed plan` reads configs without loading torch
    from torch import Tensor

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".npz", ".h5")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
FLOATS = ("F32", "F16", "BF16", "F64")
"""Types of weights, with safetensors' names."""
INTEGERS = ("_ids", "_index", "_tracked")
"""Ends of the names of tensors that are integers and not weights: positions and counters."""
PREPROCESSOR = "preprocessor_config.json"
PROBE_TIMEOUT_S = 5.0


def is_hub_id(weights: str) -> bool:
    """Returns whether `weights` names a model on the hub instead of a local path."""
    local = Path(weights).expanduser()
    path_like = weights.startswith((".", "~", "/")) or local.suffix in (".safetensors", *PICKLES)
    return not local.exists() and not path_like and HUB_ID.fullmatch(weights) is not None


def tensor_files(weights: str) -> tuple[Path, ...]:
    """Finds the safetensors files.

    Args:
        weights: A folder, a file or a hub id.

    Returns:
        Local files; for a hub id, those of its cached or downloaded copy.

    Raises:
        DataError: There is no such folder or file, or it has no safetensors file.
        UnreachableError: The hub does not answer and the model is not in its cache.
    """
    if is_hub_id(weights):
        return (hub_file(weights, "model.safetensors"),)
    path = _local(weights)
    if path.is_file():
        if path.suffix != ".safetensors":
            raise DataError(f"the weights {path} are not a .safetensors file", remedy=_CONVERT)
        return (path,)
    if (path / "model.safetensors").is_file():
        return (path / "model.safetensors",)
    index = path / "model.safetensors.index.json"
    if index.is_file():
        names = _json(index).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            raise DataError(f"{index} names no files in `weight_map`", remedy="copy or download it again")
        files = tuple(path / name for name in sorted(set(names.values())))
        here = set(path.iterdir())
        missing = [file.name for file in files if file not in here]
        if missing:
            raise DataError(f"{path} lacks {missing[0][:100]}, which its index names", remedy="copy the whole folder")
        return files
    if any(file.suffix in PICKLES for file in path.iterdir()):
        raise DataError(f"the folder {path} only has weights in a format that can run code", remedy=_CONVERT)
    raise DataError(f"the folder {path} has no model.safetensors", remedy="name the folder that holds it")


def checked_files(weights: str) -> tuple[Path, ...]:
    """Finds the safetensors files, and checks by their headers that they are whole and hold weights that can be used.

    Raises:
        DataError, UnreachableError: As `tensor_files`; a file is damaged, or has quantised weights.
    """
    from safetensors import SafetensorError, safe_open

    files = tensor_files(weights)
    for file in files:
        try:
            with safe_open(file, framework="numpy") as opened:
                types = {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118  # no dict
        except (SafetensorError, OSError) as error:
            raise DataError(f"cannot read {file}: {error}", remedy="copy or download it again") from None
        for name, kind in sorted(types.items()):
            if kind not in FLOATS and not name.endswith(INTEGERS):
                raise DataError(
                    f"{name[:200]} has the type {kind} in the weights {weights}; only {', '.join(FLOATS)} are read",
                    remedy="name weights that are not quantised, or dequantise these with their scales",
                )
    return files


def read_tensors(weights: str) -> dict[str, Tensor]:
    """Reads all tensors.

    Raises:
        DataError, UnreachableError: As `checked_files`.
    """
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for file in checked_files(weights):
        try:
            tensors.update(load_file(file))
        except OSError as error:
            raise unreadable(file, error) from None
    return tensors


def read_config(weights: str | None) -> dict[str, Any]:
    """Reads the config.json of the weights; {} for a single file, or if no weights are named.

    A key that is null, as transformers writes them, has the library's default and is left out.

    Raises:
        DataError: The folder has no config.json, or it is not JSON.
        UnreachableError: The hub does not answer and the model is not in its cache.
    """
    if weights is None:
        return {}
    if is_hub_id(weights):
        return _without_nulls(_json(hub_file(weights, "config.json")))
    path = _local(weights)
    if path.is_file():
        return {}
    if not (path / "config.json").is_file():
        raise DataError(
            f"the folder {path} has no config.json",
            remedy="add it, or name the .safetensors file itself and describe the architecture in `config`",
        )
    return _without_nulls(_json(path / "config.json"))


def _without_nulls(found: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if value is not None}


def checked_settings(encoder: EncoderSpec, found: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Returns settings that are stored with weights, or raises DataError if their values do not fit the family."""
    try:
        if found is None:
            raise ValueError("`model_args` or `pretrained_cfg` is damaged")
        given = {key: value for key, value in found.items() if key not in HARMLESS}
        encoder_family(encoder.family).check_types(given)
    except ValueError as error:
        raise DataError(
            f"the config.json of {encoder.weights} is wrong: {error}", remedy="copy or download it again"
        ) from None
    return found


def tokenizer_of(encoder: EncoderSpec) -> str | None:
    """Returns the effective tokenizer: the spec's, else that of the weights; None for bytes, which need no file.

    Raises:
        DataError: Pretrained text weights have no tokenizer, and the spec names none.
    """
    weights = encoder.weights
    if encoder.tokenizer or weights is None or encoder_family(encoder.family).modality != "text":
        return encoder.tokenizer
    if is_hub_id(weights):
        return weights
    folder = folder_of(weights)
    if has_tokenizer(folder):
        return weights
    raise DataError(
        f"the weights {weights} have no tokenizer ({VOCABULARIES[0]} or {VOCABULARIES[1]} next to them)",
        remedy="copy it there, or name the one that they were trained with in model.encoders.text.tokenizer",
    )


def normalise_of(encoder: EncoderSpec) -> Normalise | None:
    """Returns how an encoder's inputs are normalised: as the spec says, else its weights, else its family.

    Raises:
        DataError: The weights' own values do not fit the family's inputs.
    """
    family = encoder_family(encoder.family).normalise
    if family is None:
        return None
    if encoder.normalise is not None:
        return Normalise(encoder.normalise.mean, encoder.normalise.std)
    found = None if encoder.weights is None else _stored_normalise(encoder.weights, channels=len(family.mean))
    return found or family


def inputs_text(encoders: Mapping[str, EncoderSpec]) -> str:
    """Describes the inputs' normalisation and the tokenizer, each as in use: `image mean 0.5 0.5 0.5, std ...`."""
    texts = []
    for modality, encoder in encoders.items():
        normalise = normalise_of(encoder)
        if normalise is not None:
            mean, std = (" ".join(f"{value:.4g}" for value in values) for values in normalise)
            texts.append(f"{modality} mean {mean}, std {std}")
        elif encoder_family(encoder.family).modality == "text":
            texts.append(f"{modality} tokenizer {tokenizer_of(encoder) or 'bytes'}")
        else:
            texts.append(f"{modality} windows standardised")
    return "; ".join(texts)


def _stored_normalise(weights: str, *, channels: int) -> Normalise | None:
    """Reads mean and std from timm's `pretrained_cfg` or transformers' preprocessor_config.json, if there is one."""
    found = _optional(weights, "config.json").get("pretrained_cfg")
    if found is None or found == {}:
        found = _optional(weights, PREPROCESSOR)
    if not isinstance(found, dict):
        raise DataError(f"the `pretrained_cfg` of {weights} is wrong", remedy="copy or download config.json again")
    mean, std = (found.get(f"image_{name}", found.get(name)) for name in ("mean", "std"))
    if not found.get("do_normalize", True):
        mean, std = 0.0, (1.0 if channels > 1 else 0.5)  # a spectrogram is divided by 2 std
    if mean is None or std is None:
        return None
    both = [tuple(value) if isinstance(value, list) else (value,) for value in (mean, std)]
    mean, std = (value * channels if len(value) == 1 else value for value in both)
    sound = all(type(value) in (int, float) and abs(value) < LARGEST for value in (*mean, *std))
    if len(mean) != channels or len(std) != channels or not sound or min(std) <= 0:
        raise DataError(
            f"the weights {weights} normalise inputs by a mean of {str(mean)[:100]} and a std of {str(std)[:100]}, "
            f"which is not {channels} of each",
            remedy="set model.encoders.<modality>.normalise",
        )
    return Normalise(tuple(map(float, mean)), tuple(map(float, std)))


def _optional(weights: str, name: str) -> dict[str, Any]:
    """Reads a JSON file next to weights; {} if there is none."""
    if not is_hub_id(weights):
        path = folder_of(weights) / name
        return _json(path) if path.is_file() else {}
    try:
        return _json(hub_file(weights, name))
    except DataError:
        return {}


def folder_of(weights: str) -> Path:
    """Returns the folder of local weights. Raises DataError if it is missing or closed."""
    path = _local(weights)
    return path.parent if path.is_file() else path


def hub_file(repo: str, name: str) -> Path:
    """Returns a local copy of a file on the hub: the cached copy, else a download.

    Raises:
        DataError: The hub has no such model or file.
        UnreachableError: The file is not cached, and the hub does not answer within seconds.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
    from huggingface_hub.utils import get_session

    try:
        return Path(hf_hub_download(repo, name, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    offline = UnreachableError(
        f"there is no folder `{repo}`, and the model hub does not answer for {repo}/{name}",
        remedy="check the path or the network, or copy the model's folder here and name it",
    )
    if constants.HF_HUB_OFFLINE:
        raise offline
    try:  # without a network the hub's own client retries for half a minute, so probe once first
        get_session().head(constants.ENDPOINT, timeout=PROBE_TIMEOUT_S)
    except Exception:  # the type of the error depends on the hub library's HTTP client
        raise offline from None
    try:
        return Path(hf_hub_download(repo, name, etag_timeout=PROBE_TIMEOUT_S))
    except LocalEntryNotFoundError:
        raise offline from None
    except (EntryNotFoundError, HfHubHTTPError) as error:
        line = str(error).strip().splitlines()[0]
        raise DataError(f"the model hub has no {name} for `{repo}`: {line}", remedy="check the id") from None
    except OSError:
        raise offline from None


_CONVERT = (
    "save it as model.safetensors: transformers' save_pretrained and timm's save_for_hf do, "
    "or safetensors.torch.save_file of its state dict"
)


def _local(weights: str) -> Path:
    path = Path(weights).expanduser()
    try:
        if path.is_dir():
            next(path.iterdir(), None)  # raises if the folder's names cannot be listed,
            (path / "config.json").exists()  # and this if its files cannot be reached
        elif not path.exists():
            raise DataError(
                f"there are no weights at {path}", remedy="check the path, or name a hub id such as owner/name"
            )
    except OSError as error:
        raise unreadable(path, error) from None
    return path


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}", remedy="copy or download it again") from None
    except OSError as error:
        raise unreadable(path, error) from None
    if not isinstance(value, dict):
        raise DataError(f"{path} is not a JSON object", remedy="copy or download it again")
    return value


def unreadable(path: Path, error: OSError) -> DataError:
    """Returns the error for a file of weights that the system does not let us read."""
    return DataError(f"{path} cannot be read: {error.strerror}", remedy="make it readable")
