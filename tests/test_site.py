"""The site builds without a warning, and every link of it and of the README has something at its end."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from scipy.stats import norm

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-d", str(out / "trees")]
    done = subprocess.run([*words, str(ROOT / "docs"), str(out / "html")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out / "html"


@pytest.mark.slow
class TestSite:
    def test_has_every_page_and_what_the_pages_take_from_the_readme(self, site: Path) -> None:
        for page in (ROOT / "docs").glob("*.md"):
            assert (site / f"{page.stem}.html").is_file(), page
        text = {name: (site / f"{name}.html").read_text() for name in ("certificates", "attacks", "training", "index")}
        assert "for each input by itself" in text["certificates"]
        assert "<!-- from" not in "".join(text.values())
        assert "SmoothedPGD" in text["attacks"]
        assert "MACERTrainer" in text["training"]

    def test_has_the_notebooks_with_their_outputs(self, site: Path) -> None:
        for notebook in (ROOT / "examples" / "notebooks").glob("*.ipynb"):
            page = (site / "notebooks" / f"{notebook.stem}.html").read_text()
            assert "data:image/png;base64" in page
            assert f'href="notebooks/{notebook.stem}.html"' in (site / "notebooks.html").read_text()

    def test_says_of_every_public_name_what_it_is(self, site: Path) -> None:
        import art_rs_plugin

        reference = (site / "api.html").read_text()
        for name in set(art_rs_plugin.__all__) - {"__version__", "ABSTAIN"}:
            assert re.search(rf'id="[\w.]*\.{name}"', reference), name
        assert "from_art" in reference

    def test_has_no_link_to_a_page_or_place_that_is_not_there(self, site: Path) -> None:
        places = {page.name: set(re.findall(r'\bid="([^"]+)"', page.read_text())) for page in site.glob("*.html")}
        links = 0
        for page in site.glob("*.html"):
            for target in re.findall(r'href="([^"]+)"', page.read_text()):
                path, _, place = target.partition("#")
                if "://" in target or path.startswith(("mailto:", "_static")):
                    continue
                there = path or page.name
                assert (site / there).exists(), (page.name, target)
                if place and there in places:
                    assert place in places[there], (page.name, target)
                links += 1
        assert links > 100


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_to_a_file_has_one(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)", text):
        assert "://" in target or (page.parent / target).exists(), target


def test_every_section_that_a_page_takes_from_elsewhere_is_there() -> None:
    taken = [
        (page.name, file, title)
        for page in PAGES
        for file, title in re.findall(r"^<!-- from (\S+): (.+) -->$", page.read_text(), flags=re.MULTILINE)
    ]
    assert len(taken) > 10
    for page, file, title in taken:
        assert title == "all" or f"\n## {title}\n" in (ROOT / file).read_text(), (page, title)


def test_the_table_of_caps_is_what_the_formula_gives_rounded_down() -> None:
    text = (ROOT / "docs" / "choosing.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if re.match(r"\| 1[0 ]*0 \|", line)]
    assert len(rows) == 6
    for n, *cells in rows:
        for alpha, cell in zip((0.01, 0.001, 0.0001), cells, strict=True):
            cap = float(norm.ppf(alpha ** (1 / int(n.replace(" ", "")))))
            if cell == "none":
                assert cap < 0
            else:
                assert 0 <= cap - float(cell) < 0.001, (n, alpha)
