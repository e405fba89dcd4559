"""The page of a report in a real browser: on a desk and on a phone, by day and by night, and with hostile names."""

import shutil

import pytest
from made_ledgers import HOSTILE, header_of, ledger, rows_of

from art_rs_plugin.experiments.report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium to look at the page with")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def page_of(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    header = header_of(device=HOSTILE, versions={HOSTILE: HOSTILE})
    name = 'a-very-long-name-without-a-single-space-that-a-phone-must-break"><script>window.hacked=1<'
    paths = [ledger(folder / f"{name}{seed}.jsonl", rows_of(30, seed=seed), header) for seed in range(3)]
    write_report(paths, folder / "report.html", radii=(0.0, 0.25, 0.5, 0.75, 1.0), title=HOSTILE)
    return (folder / "report.html").as_uri()


def luminance(colour):
    """Of "rgb(r, g, b)", as WCAG 2 defines it."""
    channels = [int(part) / 255 for part in colour.strip("rgba()").split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [380, 1200])
def test_the_page_fits_is_readable_and_runs_nothing_of_its_names(browser, page_of, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page, asked, said = context.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(page_of)
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing sticks out"
    assert page.evaluate("typeof window.hacked") == "undefined"
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert said == []
    paper = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (luminance(paper) > 0.5) == (scheme == "light")
    for selector in ("h1", "figcaption", "td", "button.copy", ".no", "footer"):
        colour = page.evaluate(f"getComputedStyle(document.querySelector('{selector}')).color")
        assert contrast(colour, paper) >= 4.5, selector
    # figures: letters of the page's ink, and large enough
    letters = page.locator("figure.plot > svg text").first
    ink = letters.evaluate("text => getComputedStyle(text).fill")
    assert contrast(ink, paper) >= 4.5
    assert letters.evaluate("text => text.getBoundingClientRect().height") >= 9
    lines = page.evaluate("getComputedStyle(document.querySelector('figure.plot line')).stroke")
    assert contrast(lines, paper) >= 3
    assert all(image["naturalWidth"] > 0 for image in page.evaluate(
        "[...document.images].map(image => ({naturalWidth: image.naturalWidth}))"))  # fmt: skip
    context.close()


def test_a_phone_shows_numbers_and_that_there_are_more(browser, page_of):
    context = browser.new_context(viewport={"width": 380, "height": 800})
    page = context.new_page()
    page.goto(page_of)
    for column in (3, 4):
        box = page.locator(f".words tbody tr:first-child > :nth-child({column})").bounding_box()
        assert box["x"] + box["width"] <= 380
    shade = page.locator(".words .scroll").evaluate("table => getComputedStyle(table).backgroundImage")
    assert shade.count("linear-gradient") == 4
    context.close()


def test_a_table_is_copied_as_cells(browser, page_of):
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.goto(page_of)
    button = page.locator("button.copy").first
    button.click()
    page.wait_for_function("document.querySelector('button.copy').textContent === 'Copied'")
    lines = page.evaluate("navigator.clipboard.readText()").splitlines()
    assert lines[0].split("\t")[:3] == ["ledger", "images", "σ"]
    assert [line.split("\t")[1] for line in lines[1:]] == ["30", "30", "30"]
    context.close()


def test_the_page_is_white_on_paper_and_has_no_buttons(browser, page_of):
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    page.goto(page_of)
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("button.copy").first.is_visible()
    # a long table goes on, on the next page, and none is shaded
    assert page.locator(".settings figure").first.evaluate("it => getComputedStyle(it).breakInside") == "auto"
    assert page.locator(".scroll").first.evaluate("it => getComputedStyle(it).backgroundImage") == "none"
    assert page.pdf(format="A4").startswith(b"%PDF")
    context.close()


def test_without_scripts_all_is_there_but_the_buttons(browser, page_of):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(page_of)
    assert not page.locator("button.copy").first.is_visible()
    assert page.locator("figure.table").count() >= 7
    context.close()
