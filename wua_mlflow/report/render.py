"""A report as markdown, as MLflow's description, and as one HTML page.

Tests: ``tests/report/test_render.py``.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from wua_mlflow.errors import printable
from wua_mlflow.markdown import markdown_cell, markdown_text
from wua_mlflow.report.content import Block, Bullets, Picture, Report, Section, Table, Text
from wua_mlflow.report.sections import second_line, sections

__all__ = [
    "description", "html_report", "markdown_report", "markdown_table", "short_description",
]


ROOM = 7_800
"""Characters of a description: MLflow silently truncates a tag's value after 8,000."""
ROOM_OF_VERSION = 4_900
"""The store refuses a longer description of a registered version than 5,000."""
FEWER_ROWS = (12, 4)
MORE = "The rest is in this run's artifacts `report.md` and `report.html`."

_SPACE = "\N{NO-BREAK SPACE}" * 4


def markdown_report(report: Report) -> str:
    """The report as markdown: the verdict in one sentence, its figures, the question, the sections.

    Pictures are left out.
    """
    return _markdown(report, sections(report))


def description(report: Report) -> str:
    """The report as markdown, with fewer rows and sections if it is too long for MLflow."""
    whole = markdown_report(report)
    if len(whole) <= ROOM:
        return whole
    fewer_rows = [[replace(section, blocks=tuple(_cut(block, rows) for block in section.blocks))
                   for section in sections(report)] for rows in FEWER_ROWS]
    shortest = fewer_rows[-1]
    fewer_sections = [shortest[:count] for count in reversed(range(len(shortest)))]
    texts = [f"{_markdown(report, content)}\n{MORE}\n" for content in fewer_rows + fewer_sections]
    beginning = texts[-1][: ROOM - len(MORE) - 5].rstrip()
    closed = "`" * (beginning.count("`") % 2)  # an open code span would leave its tags alive
    cut_off = f"{beginning}{closed} …\n\n{MORE}\n"
    return next((text for text in texts if len(text) <= ROOM), cut_off)


def short_description(report: Report) -> str:
    """The verdict and what is saved, with the table of figures: of a slim run or a version of it.
    """
    text = _markdown(report, sections(report)[:1])
    return text if len(text) <= ROOM_OF_VERSION else _markdown(report, [])[:ROOM_OF_VERSION]


def html_report(report: Report, pictures: Mapping[str, bytes]) -> str:
    """The report as one HTML page.

    Args:
        report: the content.
        pictures: PNG by the key of their ``Picture`` block; those of other keys come at the end.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    environment.filters["with_code"] = _with_code
    content = [_with_pictures(section, pictures) for section in sections(report)]
    placed = {block.key for section in content for block in section.blocks
              if isinstance(block, Picture)}
    return environment.get_template("report.html.j2").render(
        report=report, second_line=second_line(report),
        sections=[section for section in content if section.blocks],
        pictures={key: base64.b64encode(png).decode() for key, png in pictures.items()},
        further_pictures=[key for key in pictures if key not in placed])


def _with_pictures(section: Section, pictures: Mapping[str, bytes]) -> Section:
    """The section without the ``Picture`` blocks that have no picture."""
    return replace(section, blocks=tuple(
        block for block in section.blocks
        if not isinstance(block, Picture) or block.key in pictures))


def _with_code(words: str) -> str:
    """HTML-escaped text, with text in backticks as ``<code>``."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(printable(words)))))


def _markdown(report: Report, content: Sequence[Section]) -> str:
    first = f"**{markdown_text(report.decision)}** {markdown_text(report.comparison.equal_budget)}"
    parts = [first.strip(), markdown_text(second_line(report)),
             markdown_text(f"The question: {report.asked}")]
    for section in content:
        blocks = [text for block in section.blocks if (text := _markdown_block(block))]
        if blocks:
            parts += [f"## {markdown_text(section.title)}", *blocks] if section.title else blocks
    return "\n\n".join(parts) + "\n"


def _markdown_block(block: Block) -> str:
    if isinstance(block, Text):
        return markdown_text(block.words)
    if isinstance(block, Bullets):
        return "\n".join(f"- {markdown_text(point)}" for point in block.points)
    return markdown_table(block) if isinstance(block, Table) else ""


def markdown_table(table: Table) -> str:
    """A table in markdown's form."""
    rows = [_table_line(row, "**" if i == table.strong else "")
            for i, row in enumerate(table.rows)]
    return "\n".join([_table_line(table.head), "|---" * len(table.head) + "|", *rows])


def _table_line(cells: Sequence[str], mark: str = "") -> str:
    """A markdown table row; MLflow shows no space between cells, so each ends with some."""
    escaped = [f"{mark}{markdown_cell(cell)}{mark}{_SPACE}" if cell else "" for cell in cells]
    return f"| {' | '.join(escaped)} |"


def _cut(block: Block, rows: int) -> Block:
    if isinstance(block, Bullets) and len(block.points) > 2 * rows:
        more = f"… and {len(block.points) - 2 * rows:,} more"
        return Bullets((*block.points[: 2 * rows], more))
    if not isinstance(block, Table) or not block.may_be_cut or len(block.rows) <= rows:
        return block
    more = f"… and {len(block.rows) - rows:,} more"
    blank = ("",) * (len(block.head) - 1)
    return replace(block, rows=[*block.rows[:rows], (more, *blank)])
