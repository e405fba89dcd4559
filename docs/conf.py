"""The site: `python -m sphinx -W docs site`. Pages of the README are taken from it, so that nothing is said twice."""

import re
from pathlib import Path

from nbconvert import HTMLExporter
from sphinx.errors import ExtensionError

import art_rs_plugin

ROOT = Path(__file__).parents[1]

project = "art-rs-plugin"
author = "the authors of art-rs-plugin"
version = release = art_rs_plugin.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.viewcode"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"art-rs-plugin {release}"
html_show_copyright = False
html_css_files = ["wide.css"]
html_static_path = ["static"]
default_role = "code"  # docstrings name things in single backticks
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_class_signature = "separated"
toc_object_entries = False
nitpicky = False

_INCLUDED = re.compile(r"^<!-- from (\S+): (.+) -->$", re.MULTILINE)
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def section(file, title):
    """A section of a Markdown file without its heading, or the whole file, less its first heading, for `all`."""
    text = (ROOT / file).read_text()
    if title == "all":
        return relinked(text.partition("\n")[2], ROOT / file)
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise ExtensionError(f"{file} has no section `{title}`")
    return relinked(found[1], ROOT / file)


def relinked(text, file):
    """Links from where `file` is to the site's pages; what is no page is named without a link, and must be there."""

    def link(match):
        image, words, target = match.groups()
        path, _, anchor = target.partition("#")
        if "://" in target or not path:
            return match[0]
        there = (file.parent / path).resolve()
        if not there.exists():
            raise ExtensionError(f"{file.relative_to(ROOT)} links to `{target}`, which does not exist")
        if there.suffix == ".ipynb":
            return f'<a href="notebooks/{there.stem}.html">{words}</a>'
        if image or (there.suffix == ".md" and there.parent == ROOT / "docs"):
            return f"{image}[{words}]({there.relative_to(ROOT / 'docs')}{'#' * bool(anchor)}{anchor})"
        return words

    return _LINK.sub(link, text)


def read(app, docname, source):
    """A page, with what it takes from elsewhere."""
    text = relinked(source[0], Path(app.srcdir) / f"{docname}.md")
    source[0] = _INCLUDED.sub(lambda match: section(match[1], match[2]), text)


def notebooks(app, error):
    """Pages of the notebooks with their outputs, as they are: nothing is executed."""
    if error is None and app.builder.format == "html":
        folder = Path(app.outdir) / "notebooks"
        folder.mkdir(exist_ok=True)
        for path in (ROOT / "examples" / "notebooks").glob("*.ipynb"):
            page, _ = HTMLExporter().from_filename(str(path))
            (folder / f"{path.stem}.html").write_text(page)


def plain(app, what, name, obj, options, lines):
    """Docstrings have no emphasis: a star in `(m, *input_shape)` is a star."""
    for number, line in enumerate(lines):
        words = line.split("`")
        words[::2] = [word.replace("*", r"\*") for word in words[::2]]
        lines[number] = "`".join(words)


def setup(app):
    """What Sphinx calls first."""
    app.connect("source-read", read)
    app.connect("build-finished", notebooks)
    app.connect("autodoc-process-docstring", plain)
