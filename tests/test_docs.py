"""The pages: links lead somewhere, what is named exists, nothing stands twice, the site builds."""

import collections
import configparser
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from ml_collections import ConfigDict

from mlic_jax.config import default_config

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)

FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
WRITTEN = re.compile(r"^<!-- (?!end).*?^<!-- end -->$", re.DOTALL | re.MULTILINE)  # by scripts
SHORTEST_SENTENCE = 50  # characters; shorter ones may stand in two tables of contents


@pytest.fixture(scope="module")
def metadata():
    """Of the package, as in setup.cfg."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def prose(page: Path) -> str:
    """A page without code."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """Those of its headings, as code hosts make them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("http:", "https:")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists() and file.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(file), target


@each_page
def test_files_modules_and_options_that_are_named_exist(page):
    text = page.read_text(encoding="utf-8")
    folders = "configs|docs|mlic_jax|scripts|tests|weight_conversion"
    for name in re.findall(rf"(?<![\w/.])(?:{folders})/[\w/.-]*\w\.(?:py|md|json|toml)\b", text):
        assert (ROOT / name).is_file(), name
    for name in re.findall(r"python -m ((?:mlic_jax|weight_conversion)[\w.]*)", text):
        assert find_spec(name), name
    for name in re.findall(r"--config\.([a-z_0-9.]+)", text):
        options = default_config()
        for part in name.split("."):
            assert isinstance(options, ConfigDict) and part in options, name
            options = options[part]


def test_no_sentence_stands_twice():
    places = collections.defaultdict(list)
    for page in PAGES:
        text = re.sub(r"^[#|].*$", "\n", WRITTEN.sub("\n", prose(page)), flags=re.MULTILINE)
        for paragraph in re.split(r"\n\s*\n", text):
            for sentence in re.split(r"(?<=[.:;?])\s+", " ".join(paragraph.split())):
                if len(sentence) >= SHORTEST_SENTENCE:
                    places[sentence].append(page.name)
    assert len(places) > 300
    assert not {sentence: names for sentence, names in places.items() if len(names) > 1}


def test_the_first_pages_are_short():
    lines = {page.name: len(page.read_text().splitlines()) for page in PAGES}
    assert lines["README.md"] <= 180 and lines["CONTRIBUTING.md"] <= 40
    assert all(f"(docs/{page.name})" in PAGES[0].read_text() for page in PAGES[3:])


@pytest.mark.parametrize("title", ["test", "torch", "numerical", "coverage"])
def test_the_commands_that_ci_reads(title):
    block = re.compile(rf"^<!-- command: {title} -->$(.*?)^<!-- end -->$", re.DOTALL | re.MULTILINE)
    (found,) = block.findall(PAGES[0].read_text())
    assert len(re.findall(r"^.*-m pytest .*$", found, re.MULTILINE)) == 1


def test_the_readme_names_every_extra(metadata):
    extras = set(metadata["options.extras_require"])
    assert extras <= set(re.findall(r"`(\w+)`", PAGES[0].read_text()))


def test_licence_and_papers(metadata):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert metadata["metadata"]["license"] == citation["license"] == "Apache-2.0"
    assert "Apache License\n" in (ROOT / metadata["metadata"]["license_files"]).read_text()
    assert "version" not in citation  # which stands in the package alone
    architecture = " ".join((ROOT / "docs" / "architecture.md").read_text().split())
    assert len(citation["references"]) == 2
    for paper in citation["references"]:
        assert paper["title"] in architecture and paper["authors"] and paper["year"] == 2021


def test_the_site_builds_without_a_warning(tmp_path):
    for name in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(name, reason="needs the extra `docs`")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    start = (tmp_path / "index.html").read_text()
    assert 'href="own_data/#a-recipe-on-coco128"' in start and 'src="example.jpg"' in start
    assert 'href="site.css"' in start and (tmp_path / "site.css").is_file()  # commands wrap
    metrics = (tmp_path / "reference" / "mlic_jax.metrics" / "index.html").read_text()
    assert 'id="mlic_jax.metrics.classification.evaluate_scores"' in metrics
    architecture = (tmp_path / "architecture" / "index.html").read_text()
    assert 'href="../reference/mlic_jax.train/#mlic_jax.train.loop"' in architecture
