"""The documentation as a site: built strictly, complete, and asking nobody for anything."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

import segdeconv

ROOT = Path(__file__).parents[1]
NAV = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)


def test_every_page_is_in_the_navigation():
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in ROOT.glob("docs/**/*.md")}
    elsewhere = {"CHANGELOG.md", "configs/README.md"}
    assert set(NAV) == pages | elsewhere


def test_every_measurement_has_a_row_among_the_results():
    page = (ROOT / "docs" / "results.md").read_text()
    names = [path.name for path in (ROOT / "benchmarks" / "results").glob("*.md")]
    assert [name for name in names if f"](../benchmarks/results/{name})" not in page] == []


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site; nothing is to be reached while it is built."""
    missing = [name for name in ("mkdocs", "material", "mkdocstrings") if find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed; pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, **nowhere, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


def test_the_strict_build_has_every_page(site):
    for name in (*NAV, "benchmarks/results/zoo.md"):
        path = site / name.replace("README.md", "index.md").replace(".md", ".html")
        assert BeautifulSoup(path.read_text(), "html.parser").h1 is not None, name


def test_every_public_name_is_documented(site):
    text = "".join(path.read_text() for path in site.glob("api/*.html"))
    documented = set(re.findall(r'id="segdeconv\.[\w.]+\.(\w+)"', text))
    assert set(segdeconv.__all__) - documented == {"__version__"}
    index = (ROOT / "docs/api/index.md").read_text()
    assert [name for name in segdeconv.__all__ if f"`{name}`" not in index] == []


def test_a_section_of_the_readme_stands_on_the_site_with_links_of_the_site(site):
    page = BeautifulSoup((site / "results.html").read_text(), "html.parser")
    table = page.find("table").get_text()
    assert "CamVid, mIoU after 2 of 8 epochs" in table
    targets = {link["href"] for link in page.find("article").find_all("a", href=True)}
    assert "benchmarks/results/train-step-cpu.html" in targets


LOADED = {"script": "src", "img": "src", "iframe": "src", "link": "href", "source": "src"}


def test_no_page_loads_anything_from_elsewhere(site):
    for path in site.rglob("*.html"):
        page = BeautifulSoup(path.read_text(), "html.parser")
        for tag, attribute in LOADED.items():
            given = [found[attribute] for found in page.find_all(tag) if found.get(attribute)]
            assert [url for url in given if re.match(r"(https?:)?//", url)] == [], path
    for path in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", path.read_text()), path


LOOKS = {  # colour scheme and width in pixels
    "light": ("light", 1280),
    "dark": ("dark", 1280),
    "on a phone": ("light", 390),
}


@pytest.mark.browser
@pytest.mark.parametrize("look", LOOKS)
def test_pages_ask_for_nothing_complain_of_nothing_and_fit_the_screen(site, browser, look):
    scheme, width = LOOKS[look]
    page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})
    complaints, asked = [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    for name in ("index", "results", "network-deconvolution", "api/operators"):
        page.goto((site / f"{name}.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    dark = max(map(int, re.findall(r"\d+", ground)[:3])) < 100
    page.close()
    assert dark == (scheme == "dark")
    assert complaints == []
    assert [url for url in asked if not re.match(r"file:|data:|blob:", url)] == []
