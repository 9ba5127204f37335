"""Every component is explained and indexed, and what the pages point at is there."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.unit.k8s.rendered import K8S, OVERLAYS, ROOT

COMPONENTS = sorted(folder for folder in (K8S / "components").iterdir() if folder.is_dir())
PAGES = [ROOT / "docs/kubeflow.md", K8S / "README.md", *(folder / "README.md" for folder in COMPONENTS)]


@pytest.mark.parametrize("folder", COMPONENTS, ids=lambda folder: folder.name)
def test_component_says_what_it_needs_and_how_it_is_undone(folder: Path) -> None:
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {folder.name}\n")
    assert "**Needs**" in page and "**Undo**" in page
    assert f"(components/{folder.name}/README.md)" in (K8S / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", OVERLAYS)
def test_overlay_is_in_the_index(name: str) -> None:
    assert f"(overlays/{name}/kustomization.yaml)" in (K8S / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert "://" in target or (page.parent / target).exists(), target


def test_what_is_deleted_by_name_is_what_is_made() -> None:
    """Names in `kubectl delete` of the pages are names in the manifests."""
    made = "\n".join(path.read_text(encoding="utf-8") for path in K8S.rglob("*.yaml"))
    for page in PAGES:
        for names in re.findall(
            r"kubectl [^`\n]*delete [a-z,]+ ((?:lwfed[-a-z0-9]* ?)+)", page.read_text(encoding="utf-8")
        ):
            for name in names.split():
                assert re.search(rf"name: {name}(?![-\w])", made), (page.name, name)


def test_picture_is_one() -> None:
    picture = ROOT / "docs/kubeflow.svg"
    root = ElementTree.parse(picture).getroot()
    assert root.tag.endswith("svg") and root.find("{*}title") is not None and root.find("{*}desc") is not None
    assert "![" in (page := PAGES[0].read_text(encoding="utf-8")) and "(kubeflow.svg)" in page
