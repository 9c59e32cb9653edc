"""A report's sections as markdown, for MLflow's description too, and as one HTML page.

May import: the report's content. Tests: ``tests/pipeline/test_report.py``.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from wua_mlflow.report.content import Block, Bullets, Picture, Report, Section, Table, Text
from wua_mlflow.report.sections import second_line, sections
from wua_mlflow.tracking.names import Metric
from wua_mlflow.tutorial import flops_text, report_text

__all__ = ["description", "html_report", "markdown_report", "table_text", "terminal_reports"]


ROOM = 7_800
"""Characters of a description: MLflow cuts a tag's value after 8,000, without a word."""
FEWER_ROWS = (12, 4)
MORE = "The rest is in this run's artifacts `report.md` and `report.html`."

_SPACE = "\N{NO-BREAK SPACE}" * 4


def markdown_report(report: Report) -> str:
    """First the verdict in one sentence, then its figures, the question, the table, and the rest.

    Pictures are left out.
    """
    return _markdown(report, sections(report))


def description(report: Report) -> str:
    """The same, with fewer rows and sections where it would be longer than MLflow keeps."""
    whole = markdown_report(report)
    if len(whole) <= ROOM:
        return whole
    found = sections(report)
    for rows in FEWER_ROWS:
        fewer = [replace(one, blocks=tuple(_cut(block, rows) for block in one.blocks))
                 for one in found]
        said = f"{_markdown(report, fewer)}\n{MORE}\n"
        if len(said) <= ROOM:
            return said
    while len(said) > ROOM and fewer:
        fewer.pop()
        said = f"{_markdown(report, fewer)}\n{MORE}\n"
    return said if len(said) <= ROOM else f"{said[: ROOM - len(MORE) - 4].rstrip()} …\n\n{MORE}\n"


def html_report(report: Report, pictures: Mapping[str, bytes]) -> str:
    """The same as one HTML page, with the pictures, PNG, by the key of their place.

    A picture of another key stands at the end.
    """
    found = sections(report)
    placed = {block.key for one in found for block in one.blocks if isinstance(block, Picture)}
    body = "".join(_html_section(one, pictures) for one in found)
    body += "".join(_figure(key, png) for key, png in pictures.items() if key not in placed)
    outcome = report.comparison.verdict.outcome
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width"><title>{html.escape(report.title)}</title>'
        f"<style>{_STYLE}</style><h1>{html.escape(report.title)}</h1>"
        f'<p class="asked">{html.escape(report.asked)}</p>'
        f'<div class="verdict {html.escape(outcome)}"><p><strong>{html.escape(report.in_short)}'
        f"</strong></p><p>{html.escape(second_line(report))}</p></div>{body}</html>\n"
    )


def _markdown(report: Report, found: Sequence[Section]) -> str:
    parts = [f"**{report.in_short}**", second_line(report), f"The question: {report.asked}"]
    for one in found:
        blocks = [text for block in one.blocks if (text := _markdown_block(block))]
        if blocks:
            parts += [f"## {one.title}", *blocks] if one.title else blocks
    return "\n\n".join(parts) + "\n"


def _markdown_block(block: Block) -> str:
    if isinstance(block, Text):
        return block.words
    if isinstance(block, Bullets):
        return "\n".join(f"- {point}" for point in block.points)
    if isinstance(block, Table):
        rows = [tuple(f"**{cell}**" if cell else "" for cell in row) if i == block.strong else row
                for i, row in enumerate(block.rows)]
        return "\n".join([_cells(block.head), "|---" * len(block.head) + "|", *map(_cells, rows)])
    return ""


def _cells(cells: Sequence[str]) -> str:
    """A line of a table; MLflow shows no space between cells, so they bring their own."""
    safe = [cell.replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(f'{cell}{_SPACE}' if cell else '' for cell in safe)} |"


def _cut(block: Block, rows: int) -> Block:
    if isinstance(block, Bullets) and len(block.points) > 2 * rows:
        left = f"… and {len(block.points) - 2 * rows:,} more"
        return Bullets((*block.points[: 2 * rows], left))
    if not isinstance(block, Table) or not block.may_be_cut or len(block.rows) <= rows:
        return block
    left = f"… and {len(block.rows) - rows:,} more"
    blank = ("",) * (len(block.head) - 1)
    return replace(block, rows=[*block.rows[:rows], (left, *blank)])


def _html_section(one: Section, pictures: Mapping[str, bytes]) -> str:
    inside = "".join(_html_block(block, pictures) for block in one.blocks)
    if not inside:
        return ""
    title = f"<h2>{html.escape(one.title)}</h2>" if one.title else ""
    return f"<section>{title}{inside}</section>"


def _html_block(block: Block, pictures: Mapping[str, bytes]) -> str:
    if isinstance(block, Text):
        return f"<p>{_inline(block.words)}</p>"
    if isinstance(block, Bullets):
        return f"<ul>{''.join(f'<li>{_inline(point)}</li>' for point in block.points)}</ul>"
    if isinstance(block, Picture):
        return _figure(block.says, pictures[block.key]) if block.key in pictures else ""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in block.head)
    rows = "".join(
        f"<tr{' class=strong' if i == block.strong else ''}>"
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for i, row in enumerate(block.rows))
    return (f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
            f"</div>")


def _inline(words: str) -> str:
    """Escaped, with what stands in backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(words))


def _figure(says: str, png: bytes) -> str:
    return (f'<figure><img alt="{html.escape(says)}" src="data:image/png;base64,'
            f'{base64.b64encode(png).decode()}"></figure>')


_STYLE = (
    "body{font:15px/1.55 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1.2rem;"
    "color:#23282d}h1{font-size:1.5rem;margin:0 0 .2rem}h2{font-size:1.12rem;margin:2.4rem 0 .6rem;"
    "padding-top:.7rem;border-top:1px solid #d9dee3}.asked{color:#68717a;margin:0 0 1rem}"
    ".verdict{border-left:5px solid #68717a;background:#f3f5f7;padding:.7rem 1.1rem;"
    "margin:1rem 0 1.4rem}.verdict p{margin:.25rem 0}.verdict strong{font-size:1.08rem}"
    ".non_inferior{border-color:#4f8a4a;background:#eef5ec}.inferior{border-color:#c0271d;"
    "background:#fbefee}.wide{overflow-x:auto}table{border-collapse:collapse;margin:.8rem 0;"
    "font-variant-numeric:tabular-nums}td,th{padding:.25rem .8rem;border-bottom:1px solid #d9dee3;"
    "text-align:right;white-space:nowrap}th{color:#68717a;font-weight:600}"
    "td:first-child,th:first-child{text-align:left}.strong td{font-weight:600;background:#fdf3ea}"
    "figure{margin:1.2rem 0}img{max-width:100%}ul{padding-left:1.2rem}li{margin:.25rem 0}"
    "code{background:#f1f3f5;padding:.1rem .3rem}"
)


def table_text(report: Report) -> str:
    """The table in aligned columns."""
    cells = [["", *report.names, "change"],
             *([row.label, *row.values, row.change] for row in report.rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]),
                   *(text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True))])
        .rstrip() for line in cells)


def terminal_reports(report: Report) -> str:
    """The tutorial's reports of each variant, then the verdict, its sentence for who decides last.

    """
    verdict = [f"Verdict: {report.headline}", report.comparison.verdict.sentence]
    if report.comparison.verdict.settle:
        verdict.append(report.comparison.verdict.settle)
    if report.comparison.budget:
        verdict.append(report.comparison.budget)
    if report.comparison.recipe:
        verdict.append(report.comparison.artifact.sentence)
    verdict += [report.saved, *report.comparison.notes]
    return "\n\n".join([*_variants(report), "\n".join(verdict), f"In short: {report.in_short}"])


def _variants(report: Report) -> list[str]:
    blocks = []
    for name, metrics in zip(report.names, report.metrics, strict=True):
        usage = report.usages.get(name)
        block = [name, "=" * len(name)]
        if Metric.FLOPS_PTFLOPS_TRAINING in metrics:
            block.append(flops_text(metrics[Metric.FLOPS_PTFLOPS_TRAINING],
                                    metrics[Metric.FLOPS_PTFLOPS_INFERENCE]))
        score = Metric.ACCURACY_TRAIN if Metric.ACCURACY_TRAIN in metrics else Metric.SCORE_TRAIN
        word = "Accuracy" if score == Metric.ACCURACY_TRAIN else "R²"
        test = score.replace("train", "test")
        block.append(f"{word}: {metrics[score]:.4f} on the training data, {metrics[test]:.4f} on "
                     f"data that training never saw")
        for layer in usage.layers.values() if usage else ():
            block += [f"-- {layer.name}", report_text({
                "total_weights": layer.weights, "nodes": layer.units, "entropy": layer.entropy,
                "effective_weights": layer.effective_weights,
                "top_90_percent_contrib": layer.top90_share,
                "low_contrib_percentage": 100 * layer.low_share})]
        blocks.append("\n".join(block))
    return blocks
