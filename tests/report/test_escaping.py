"""Names that would be markup, through every page: they are shown, and do nothing.

In Chromium, and with MLflow's own page: ``tests/browser/test_names.py``.
"""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser

import pytest

from tests.plots.usages import layer, model
from tests.report.cases import SAVES, report_with, round_of, verdict, widths_of_a_search
from wua_mlflow.markdown import markdown_text
from wua_mlflow.report.content import Report
from wua_mlflow.report.render import description, html_report, markdown_report
from wua_mlflow.widths.results import LayerChange

markdown_it = pytest.importorskip("markdown_it")

ODD = (
    "<script>window.hit = 1</script>", "<img src=x onerror='window.hit = 2'>",
    "[x](javascript:window.hit=3)", "![x](javascript:window.hit=4)", "<javascript:alert(1)>",
    "[x]: javascript:alert(1)", "a|b", "`</code><script>window.hit = 5</script>`", "`", "``a",
    "\\`<b>", "line\n\n# heading", "_under_ *star* ~~gone~~", "&lt;b&gt;", "# top", "1. one", "---",
    "</td></tr></table><svg onload=window.hit=6>", "\"><a href='javascript:window.hit=7'>",
    "fc_1", "\x1b[2J\u202egnp.exe", "{{ 7 * 7 }}{% raw %}", "<!-- ", "<![CDATA[", "|---|\n|x|",
    "$x$ \\[y\\]", "a" * 300)
PLAIN = {"p", "strong", "h1", "h2", "ul", "li", "table", "thead", "tbody", "tr", "th", "td", "code"}
PAGE = PLAIN | {"html", "head", "meta", "title", "style", "body", "div", "section", "figure", "img"}


def odd_report(names: tuple[str, ...] = ODD) -> Report:
    """A report that has each name wherever a report can have names."""
    usages = {f"old {names[0]}": model([
        layer(name, 0.3, (0.5, 0.6), dead_units=3) for name in names])}
    report = report_with(SAVES, looks=3)
    judged = replace(report.comparison, worst_class=names[1], class_loss=f"Class {names[2]} loses.",
                     budget=f"Not alike: {names[0]}.", no_recipe=f"None: {names[3]}.")
    return replace(
        report, title=f"{names[0]} → {names[1]}", comparison=judged,
        names=[f"old {names[0]}", f"slim {names[1]}"], usages=usages,
        layers=[LayerChange(name, 64, 16) for name in names],
        uncut={name: f"of {name}" for name in names},
        rounds=[round_of(f"slim {name}", (1,), verdict(), 2.0) for name in names],
        widths=widths_of_a_search(names[0]), slimmed_by=f"By {names[1]}: `{names[2]}`.",
        ended=f"{names[2]} ended.", again=f"`wua run --data {names[3]}`")


class _Page(HTMLParser):
    """Tags with their attributes, the text, and cells by row."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.rows = "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append(0)
        elif tag in ("td", "th"):
            self.rows[-1] += 1

    def handle_data(self, data):
        self.text += data

    def handle_comment(self, data):
        raise AssertionError("a comment")

    unknown_decl = handle_pi = handle_comment


def rendered(markdown: str) -> str:
    """As a renderer has it that lets raw HTML and any link pass."""
    parser = markdown_it.MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    parser.validateLink = lambda url: True
    return parser.render(markdown)


def shown(name: str) -> str:
    """A name as the pages have it."""
    line = " ".join(name.split())
    return line.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")


def test_markdown_shows_names_and_renders_nothing_of_them():
    for text in (markdown_report(odd_report()), description(odd_report()),
                 *(markdown_report(odd_report(ODD[first:] + ODD[:first])) for first in range(4))):
        page = _Page(rendered(text))
        assert {tag for tag, _ in page.tags} <= PLAIN
        assert not any(attributes for _, attributes in page.tags)
    page = _Page(rendered(markdown_report(odd_report())))
    missing = [name for name in ODD if shown(name) not in page.text]
    assert missing == [], "shown as it is, in a table's cell"
    assert set(page.rows) == {4, 3, 5, 6}, "no name makes a cell of its own"


@pytest.mark.parametrize("name", ODD)
def test_a_name_in_a_paragraph_is_one_and_no_other_block(name):
    page = _Page(rendered(f"# {markdown_text(name)}\n\n{markdown_text(name)}\n\n"
                          f"- {markdown_text(name)}\n"))
    assert [tag for tag, _ in page.tags if tag != "code"] == ["h1", "p", "ul", "li"]


def test_a_description_that_is_cut_short_leaves_no_code_open():
    tag = "<img src=x onerror=alert(1)>"
    for length in range(7550, 7800, 7):
        text = description(replace(odd_report(("a", "b", "c", "d")), widths=None,
                                   names=["a" * length + f"`{tag}` and `{tag * 9}`", "b"]))
        assert len(text) <= 8000
        assert {tag for tag, _ in _Page(rendered(text)).tags} <= PLAIN


def test_html_has_no_tag_attribute_or_link_of_a_name():
    page = _Page(html_report(odd_report(), {"comparison": b"png", ODD[0]: b"png"}))
    assert {tag for tag, _ in page.tags} <= PAGE
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") or name == "href" for name in attributes), tag
        assert (attributes.get("src") or "data:image/png;").startswith("data:image/png;")
    assert [name for name in ODD if shown(name) not in " ".join(page.text.split())] == []
