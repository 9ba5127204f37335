"""Images hold no secret and no address, run as a number that is not root, and are named by what made them."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[3]
FILES = (ROOT / "images/Containerfile", ROOT / "images/mlflow/Containerfile")
BUILD = ROOT / "images/build.sh"

each_file = pytest.mark.parametrize("path", FILES, ids=("client", "mlflow"))


def instructions(path: Path) -> list[tuple[str, str]]:
    """Returns a Containerfile's instructions and their arguments, continued lines joined and comments left out."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word.upper(), rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def last_stage(path: Path) -> list[tuple[str, str]]:
    found = instructions(path)
    return found[max(n for n, (word, _) in enumerate(found) if word == "FROM") :]


def build(*arguments: str, folder: Path = ROOT, limit_s: float = 60) -> subprocess.CompletedProcess[str]:
    command = [folder / "images/build.sh", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, timeout=limit_s)


@pytest.fixture(scope="module")
def needs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("needs", ROOT / "images/needs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@each_file
def test_every_stage_stands_on_the_base_that_is_asked_for(path: Path) -> None:
    found = instructions(path)
    assert found[0] == ("ARG", "BASE=python:3.11-slim")
    assert {rest.split()[0] for word, rest in found if word == "FROM"} == {"${BASE}", "scratch"}
    assert last_stage(path)[0] == ("FROM", "${BASE}")


@each_file
def test_the_user_is_a_number_other_than_root_in_the_group_that_openshift_gives(path: Path) -> None:
    assert [rest for word, rest in last_stage(path) if word == "USER"] == ["65532:0"]


@each_file
def test_what_libraries_write_goes_to_tmp(path: Path) -> None:
    settings = " ".join(rest for word, rest in last_stage(path) if word == "ENV").split()
    assert {"HOME=/tmp", "XDG_CACHE_HOME=/tmp/.cache", "MPLCONFIGDIR=/tmp/.cache/matplotlib"} <= set(settings)
    assert "PYTHONDONTWRITEBYTECODE=1" in settings
    assert ("WORKDIR", "/tmp") in last_stage(path)


@each_file
def test_labels_tell_what_it_is_and_depend_on_no_argument(path: Path) -> None:
    """A builder's cache may know such a step by its text, and would give the label of an older build."""
    found = last_stage(path)
    label = next(rest for word, rest in found if word == "LABEL")
    assert set(re.findall(r"org\.opencontainers\.image\.(\w+)=", label)) == {"title", "description", "licenses"}
    arguments = {rest.partition("=")[0] for word, rest in found if word == "ARG"}
    used = {name for word, rest in found if word in ("LABEL", "ENV") for name in re.findall(r"\$\{?(\w+)", rest)}
    assert not used & arguments


@each_file
def test_there_is_a_command_and_no_entrypoint_since_kubeflow_brings_its_own(path: Path) -> None:
    words = [word for word, _ in last_stage(path)]
    assert "ENTRYPOINT" not in words
    assert isinstance(json.loads(next(rest for word, rest in last_stage(path) if word == "CMD")), list)


@each_file
def test_no_secret_and_no_address_is_in_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "://" not in text
    assert not re.search(r"^\s*(ARG|ENV)\b.*(PASSWORD|SECRET|TOKEN|_KEY)", text, re.MULTILINE | re.IGNORECASE)
    assert not re.search(r"\b(apt-get|curl|wget|git clone)\b", text)


@each_file
def test_what_is_copied_reaches_the_builder_and_pip_leaves_no_cache(path: Path) -> None:
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] == "!"}
    for word, rest in instructions(path):
        if word == "COPY" and "--from" not in rest:
            assert set(rest.split()[:-1]) <= sent
        if word == "RUN" and "pip install" in rest:
            assert "from=wheels,target=/wheels" in rest
    assert all((ROOT / name).exists() for name in sent)
    assert "PIP_NO_CACHE_DIR=1" in " ".join(rest for word, rest in last_stage(path) if word == "ENV")


def test_the_client_image_has_all_packages_of_the_wheel() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    copied = [rest.split()[0] for word, rest in instructions(FILES[0]) if word == "COPY"]
    assert set(packages["targets"]["wheel"]["packages"]) <= set(copied)


PROJECT = {
    "dependencies": ["torch>=2.8,<3", "torchvision>=0.23,<1", "rich>=13"],
    "optional-dependencies": {"kubeflow": ["kfp>=2.17"], "dev": ["lwfed[kubeflow]", "ruff>=0.11", "rich>=13"]},
}
PINS = ["# taken today", "", "torch==2.15.0", "Nvidia_NCCL-cu13==2.30", "kfp==2.17.3", "rich==15.0.0", "ruff==0.17.6"]


def test_needs_are_split_into_pytorch_and_the_rest(needs: ModuleType) -> None:
    assert needs.needs(PROJECT, PINS, extras=["kubeflow"]) == {
        "torch.txt": ["torch>=2.8,<3", "torchvision>=0.23,<1"],
        "torch-constraints.txt": ["Nvidia_NCCL-cu13==2.30", "torch==2.15.0"],
        "requirements.txt": ["torch>=2.8,<3", "torchvision>=0.23,<1", "rich>=13", "kfp>=2.17"],
        "constraints.txt": ["Nvidia_NCCL-cu13==2.30", "kfp==2.17.3", "rich==15.0.0", "torch==2.15.0"],
    }


def test_a_layer_is_not_made_again_for_what_is_not_in_it(needs: ModuleType) -> None:
    first = needs.needs(PROJECT, PINS, extras=["kubeflow"])
    tools = needs.needs({**PROJECT, "version": "9"}, [*PINS[:-1], "ruff==0.18"], extras=["kubeflow"])
    assert tools == first
    library = needs.needs(PROJECT, [pin.replace("15.0.0", "15.1.0") for pin in PINS], extras=["kubeflow"])
    assert library["constraints.txt"] != first["constraints.txt"]
    assert library["torch-constraints.txt"] == first["torch-constraints.txt"]


def test_the_project_as_it_is_can_be_split(needs: ModuleType, tmp_path: Path) -> None:
    needs.main(str(ROOT / "pyproject.toml"), str(ROOT / "constraints.txt"), str(tmp_path), "kubeflow")
    wanted = (tmp_path / "requirements.txt").read_text(encoding="utf-8")
    assert "kfp" in wanted
    assert "ruff" not in wanted
    assert "torch==" in (tmp_path / "torch-constraints.txt").read_text(encoding="utf-8")


def repository(folder: Path) -> Path:
    """Makes a small repository with the build script, and one commit."""
    (folder / "images").mkdir(parents=True)
    shutil.copy(BUILD, folder / "images/build.sh")
    (folder / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n', encoding="utf-8")
    for command in (
        ["init", "--quiet"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a@example.com", "commit", "--quiet", "--message", "one"],
        ["remote", "add", "origin", "https://me:hidden@example.com/team/code.git"],
    ):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return repository(tmp_path_factory.mktemp("repository"))


def test_images_are_named_by_the_revision(small: Path) -> None:
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=small, capture_output=True, text=True, check=True
    ).stdout.strip()
    clean = build("all", "--dry-run", "--engine", "buildah", folder=small)
    assert clean.returncode == 0, clean.stderr
    assert [line for line in clean.stdout.splitlines() if " " not in line] == [
        f"lwfed:{head[:12]}",
        f"lwfed-mlflow:{head[:12]}",
    ]
    assert clean.stdout.count(f"--label org.opencontainers.image.revision={head} ") == 2
    assert "--label org.opencontainers.image.version=1.2.3 " in clean.stdout
    (small / "new").touch()
    try:
        dirty = build("--cuda", "--dry-run", "--engine", "buildah", folder=small)
    finally:
        (small / "new").unlink()
    assert dirty.stdout.splitlines()[-1] == f"lwfed:{head[:12]}-dirty-cuda"
    assert f"image.revision={head}-dirty " in dirty.stdout


def test_the_source_label_has_no_password(small: Path) -> None:
    told = build("--dry-run", "--engine", "buildah", folder=small).stdout
    assert "--label org.opencontainers.image.source=https://example.com/team/code.git " in told
    assert "hidden" not in told


def test_pytorch_comes_from_an_index_for_the_cpu_from_wheels_or_with_cuda(small: Path) -> None:
    def told(*arguments: str) -> str:
        return build("--dry-run", "--engine", "buildah", *arguments, folder=small).stdout

    assert "TORCH_INDEX_URL=https://index.example.com" in told("--torch-index", "https://index.example.com")
    assert "TORCH_INDEX_URL" not in told("--cuda")
    offline = told("--wheels", "images", "--no-pull")
    assert "TORCH_INDEX_URL" not in offline
    assert f"wheels={small}/images" in offline
    assert "--pull=never" in offline


def test_pushing_and_saving_use_the_tag(small: Path) -> None:
    told = build(
        "mlflow",
        "--dry-run",
        "--engine",
        "buildah",
        "--tag",
        "1",
        "--push",
        "r.example.com/t",
        "--save",
        "out",
        folder=small,
    )
    assert "docker://r.example.com/t/lwfed-mlflow:1" in told.stdout
    assert f"docker-archive:{small}/out/lwfed-mlflow.tar:lwfed-mlflow:1" in told.stdout
    assert not (small / "out").exists()


def test_help_names_every_option_and_mistakes_name_their_remedy() -> None:
    text = BUILD.read_text(encoding="utf-8")
    told = build("--help")
    assert told.returncode == 0
    options = set(re.findall(r"^\s+(?:-h\|)?(--[a-z-]+)\)", text, re.MULTILINE)) - {"--help"}
    assert len(options) > 10
    assert all(f"  {option} " in told.stdout for option in options)
    for arguments in (["--bogus"], ["--tag"], ["--wheels", "/no/such"], ["client", "--pip-conf", "/no/such"]):
        refused = build(*arguments)
        assert refused.returncode == 2
        assert re.fullmatch(r"error: .+ -> .+\n", refused.stderr)


@pytest.mark.slow
@pytest.mark.skipif(
    not os.environ.get("LWFED_TEST_WHEELS") or not shutil.which("buildah"),
    reason="builds an image: needs buildah, a base image (LWFED_TEST_BASE) and a folder of wheels (LWFED_TEST_WHEELS)",
)
def test_the_mlflow_image_builds_without_an_index() -> None:
    base = os.environ.get("LWFED_TEST_BASE", "python:3.11-slim")
    wheels = os.environ["LWFED_TEST_WHEELS"]
    done = build("mlflow", "--wheels", wheels, "--base", base, "--no-pull", "--tag", "of-a-test", limit_s=600)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"lwfed-mlflow:of-a-test sha256:[0-9a-f]{64}\n", done.stdout)
