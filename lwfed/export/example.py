"""The text that goes with an export: a README, and a Python example that needs only the public libraries."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any

_PLACEHOLDERS = {"audio": "SOUND.wav", "image": "IMAGE", "text": "TEXT"}
_WORDS = {"audio": "a sound", "image": "an image", "text": "a text"}
_ROWS = {
    "audio": "| `audio/` | transformers ASTModel and its feature extractor | `AutoModel`, `AutoFeatureExtractor` |",
    "image": "| `image/` | timm ViT | `timm.create_model('local-dir:image', pretrained=True)` |",
    "text": "| `text/` | transformers DistilBertModel and its tokenizer | `AutoModel`, `AutoTokenizer` |",
}
_NEEDS = {"audio": ("transformers", "soundfile"), "image": ("timm", "pillow"), "text": ("transformers",)}
_IMPORTS = {
    "audio": ("import numpy", "import soundfile"),
    "image": ("import timm", "from PIL import Image", "from timm.data import create_transform, resolve_data_config"),
    "text": (),
}
_AUTO = {"audio": ("AutoFeatureExtractor", "AutoModel"), "image": (), "text": ("AutoModel", "AutoTokenizer")}

_START = """\
torch.set_grad_enabled(False)
here = Path(__file__).parent
device = "cuda" if torch.cuda.is_available() else "cpu"


def head(name, *layers):
    model = nn.Sequential(*layers)
    model.load_state_dict(load_file(here / f"heads/{name}.safetensors"))
    return model.eval().to(device)


def projection(name, width):
    return head(
        name,
%(layers)s
    )
"""

_ENCODERS = {
    "audio": """\
ast = AutoModel.from_pretrained(here / "audio").eval().to(device)
extractor = AutoFeatureExtractor.from_pretrained(here / "audio")
audio_head = projection("audio", %(width)d)


def encode_audios(paths):  # 16 kHz; several channels are averaged
    sounds = [soundfile.read(path, dtype="float32", always_2d=True) for path in paths]
    rows = [extractor(samples.mean(1), sampling_rate=rate)["input_values"][0] for samples, rate in sounds]
    return audio_head(ast(torch.from_numpy(numpy.stack(rows)).to(device)).last_hidden_state[:, 0])
""",
    "image": """\
vit = timm.create_model(f"local-dir:{here}/image", pretrained=True).eval().to(device)
transform = create_transform(**resolve_data_config(model=vit))
image_head = projection("image", %(width)d)


def encode_images(paths):
    pixels = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])
    return image_head(vit(pixels.to(device)))
""",
    "text": """\
bert = AutoModel.from_pretrained(here / "text").eval().to(device)
tokenizer = AutoTokenizer.from_pretrained(here / "text")
text_head = projection("text", %(width)d)


def encode_texts(texts):
    tokens = tokenizer(texts, truncation=True, padding=True, return_tensors="pt").to(device)
    return text_head(bert(tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state[:, 0])
""",
}

_RETRIEVAL = """\
def embed(encode, items, batch_size=%(batch_size)d):
    parts = [items[i : i + batch_size] for i in range(0, len(items), batch_size)]
    return torch.cat([normalize(encode(part)) for part in parts]).cpu()


captions, folder = map(Path, sys.argv[1:3] or [here / "test/captions.json", here / "test/images"])
coco = json.loads(captions.read_text())
names = {image["id"]: image["file_name"] for image in coco["images"]}
notes = [(names[n["image_id"]], n["id"], " ".join(n["caption"].split())) for n in coco["annotations"]]
notes = sorted(note for note in notes if note[2])
files = sorted({name for name, _, _ in notes})
images = embed(encode_images, [folder / name for name in files])
texts = embed(encode_texts, [text for _, _, text in notes])
scores = texts @ images.T
own = scores.gather(1, torch.tensor([[files.index(name)] for name, _, _ in notes]))
found = (scores < own).sum(1) == len(files) - 1  # every other image scores lower
print(f"text-to-image Recall@1: {found.double().mean():.6f}")
"""

_CLASS = """\
classes = json.loads((here / "lwfed.json").read_text())["classes"]
prediction = head(
    "prediction",
%(layers)s
)
projected = [%(calls)s]
shares = prediction(torch.cat(projected, dim=1)).softmax(1)[0]
best = int(shares.argmax())
print(f"{classes[best]}: {shares[best]:.6f}")
"""

_SIMILARITY = """\
a, b = %(calls)s
print(f"cosine similarity: {(normalize(a) * normalize(b)).sum():.6f}")
"""


def example(info: Mapping[str, Any]) -> str:
    """Writes example.py: text-to-image Recall@1 over captioned images; for other models a class, or a similarity.

    Args:
        info: What lwfed.json holds.

    Returns:
        Python code that imports only torch, timm, transformers, safetensors and PIL (and soundfile for sounds).
    """
    modalities, heads = info["modalities"], info["heads"]
    supervised = info["objective"]["kind"] == "supervised"
    retrieval = retrieves(info)
    used = ["image", "text"] if retrieval else modalities if supervised else modalities[:2]
    given = " and ".join(_WORDS[m] for m in used)
    usage = " ".join(_PLACEHOLDERS[m] for m in used)
    calls = ", ".join(f"encode_{m}s([sys.argv[{i}]])" for i, m in enumerate(used, start=1))
    if retrieval:
        title, usage = "Text-to-image Recall@1 over captioned images", "[CAPTIONS.json IMAGES_FOLDER]"
        last = _RETRIEVAL % {"batch_size": info["batch_size"]}
    elif supervised:
        title, last = f"Class of {given}", _CLASS % {"layers": _prediction(**heads["prediction"]), "calls": calls}
    else:
        title, last = f"Similarity of {given}", _SIMILARITY % {"calls": calls}
    parts = [
        f'"""{title}. Usage: python example.py {usage}"""\n',
        _imports(used, json=retrieval or supervised, normalize=not supervised),
        _START % {"layers": _projection(**heads[used[0]])},
        *(f"\n{_ENCODERS[m] % {'width': heads[m]['widths'][0]}}" for m in used),
        f"\n{last}",
    ]
    return "\n".join(parts)


def retrieves(info: Mapping[str, Any]) -> bool:
    """Whether the example computes Recall@1: the model embeds images and texts."""
    return info["objective"]["kind"] == "contrastive" and {"image", "text"} <= set(info["modalities"])


def readme(info: Mapping[str, Any], *, code: str, with_test_data: bool) -> str:
    """Writes README.md.

    Args:
        info: What lwfed.json holds.
        code: The example.
        with_test_data: Whether the test split lies beside it.
    """
    supervised = info["objective"]["kind"] == "supervised"
    after = (
        "the projections, in the order of the modalities' names, are set side by side for the prediction head."
        if supervised
        else "embeddings are L2-normalised and compared by their dot product."
    )
    lines = [
        f"# {info['name']}: stage {info['stage']} of {info['num_stages']}",
        "",
        f"Trained by lwfed in run `{info['run_id']}`; objective: {info['objective']['kind']}; blocks present: "
        + ", ".join(f"{m} {count}" for m, count in info["blocks"].items())
        + f".\nCheckpoint: `{info['digest']}`.",
        "",
        "| Place | What it is | How to load it |",
        "|---|---|---|",
        *(_ROWS[m] for m in info["modalities"]),
        "| `heads/` | the heads, one file each | `nn.Sequential(...).load_state_dict`, see the example |",
        "| `lwfed.json` | where it comes from, its inputs, widths and metrics | JSON |",
        "",
        "An encoder's feature is the first token of its last hidden state (with timm the output itself). "
        f"Its projection head follows; {after}",
        "",
    ]
    if info["metrics"]:
        lines += ["| Metric | Reported |", "|---|---|"]
        lines += [*(f"| `{name}` | {value:.6f} |" for name, value in sorted(info["metrics"].items())), ""]
    needed = sorted({"torch", "safetensors", *(name for m in info["modalities"] for name in _NEEDS[m])})
    lines += [f"`example.py` needs {', '.join(needed)}, but not lwfed:", "", "```python", code.rstrip(), "```", ""]
    if retrieves(info):
        reported = "prints the reported `test/t2i/R@1`."
        lines += [
            "`python example.py CAPTIONS.json IMAGES_FOLDER` takes captions in COCO's format, such as "
            "`annotations/captions_val2017.json`, and the folder of their images. "
            + (
                f"Without them it takes `test/` and {reported}" if with_test_data else f"On the test data it {reported}"
            ),
            "",
        ]
    return "\n".join(lines)


def _imports(used: Sequence[str], *, json: bool, normalize: bool) -> str:
    standard = [*(["import json"] if json else []), "import sys", "from pathlib import Path"]
    others = {"import torch", "from safetensors.torch import load_file", "from torch import nn"}
    others |= {line for m in used for line in _IMPORTS[m]}
    auto = {name for m in used for name in _AUTO[m]}
    if auto:
        others.add(f"from transformers import {', '.join(sorted(auto))}")
    if normalize:
        others.add("from torch.nn.functional import normalize")
    return "\n".join([*standard, "", *_sorted(others)]) + "\n"


def _sorted(lines: Collection[str]) -> list[str]:
    return sorted(lines, key=lambda line: (line.startswith("from"), line.lower()))


def _projection(*, widths: Sequence[int], dropout: float) -> str:
    """Writes a projection head's layers; the input's width is an argument, for the modalities share the others."""
    inputs = ["width", *(str(width) for width in widths[1:])]
    lines = [
        f"nn.Linear({a}, {b}, bias=False), nn.Dropout({dropout:g}), nn.BatchNorm1d({b}), nn.ReLU(),"
        for a, b in pairwise(inputs[:-1])
    ]
    a, b = inputs[-2:]
    return _indented([*lines, f"nn.Linear({a}, {b}, bias=False), nn.BatchNorm1d({b}, affine=False),"], by=8)


def _prediction(*, widths: Sequence[int], dropout: float) -> str:
    a, b, c = widths
    return _indented([f"nn.Linear({a}, {b}), nn.Dropout({dropout:g}), nn.ReLU(),", f"nn.Linear({b}, {c}),"], by=4)


def _indented(lines: Sequence[str], *, by: int) -> str:
    return "\n".join(" " * by + line for line in lines)
