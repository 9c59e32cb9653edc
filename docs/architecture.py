"""Draws the packages and what each imports, read from the code: ``docs/pictures/architecture.png``.

A row is a layer of the import contract in ``pyproject.toml``; an arrow goes from a package to one
that it imports, and is left out where a longer way leads there too.
Run: ``python docs/architecture.py``.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import grimp
import networkx as nx
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "wua_mlflow"
LEFT_OUT = ("__main__",)
BOX_IN = (1.75, 0.5)
ROW_IN = 0.9
SWING = (0, 0, -1.1, 1.1, 0, -1.1, 1.1, 0, -1.1, 0)


def layers() -> list[list[str]]:
    """The packages by layer, the highest first, as the import contract names them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    contract = next(each for each in settings["contracts"] if each["type"] == "layers")
    rows = [[name.strip(" ()") for name in row.split("|")] for row in contract["layers"]]
    return [[name for name in row if name not in LEFT_OUT] for row in rows
            if set(row) - set(LEFT_OUT)]


def imports() -> nx.DiGraph:
    """Which package imports which, without arrows that a longer way makes superfluous."""
    graph = grimp.build_graph(PACKAGE, exclude_type_checking_imports=True)
    arrows = nx.DiGraph()
    for importer in graph.modules:
        for imported in graph.find_modules_directly_imported_by(importer):
            pair = [module.split(".")[1] for module in (importer, imported) if "." in module]
            if len(set(pair)) == 2 and not set(pair) & set(LEFT_OUT):
                arrows.add_edge(*pair)
    return nx.transitive_reduction(arrows)


def code_lines(name: str) -> int:
    """Lines of a package's or a module's files that are not blank."""
    folder = ROOT / PACKAGE / name
    files = folder.rglob("*.py") if folder.is_dir() else [folder.with_suffix(".py")]
    return sum(bool(line.strip()) for file in files for line in file.read_text().splitlines())


def draw() -> Figure:
    """The picture."""
    rows = [row for row in layers() if row]
    widest = max(len(row) for row in rows)
    width, height = widest * (BOX_IN[0] + 0.55) + 0.3, len(rows) * ROW_IN + 0.2
    figure = Figure(figsize=(width, height), dpi=150)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    step = BOX_IN[0] + 0.55
    centres = {}
    for number, row in enumerate(rows):
        # rows of one box swing from side to side, so that arrows pass beside them
        swing = SWING[number % len(SWING)] * step if len(row) == 1 else 0.0
        for place, name in enumerate(row):
            centres[name] = (width / 2 + swing + (place - (len(row) - 1) / 2) * step,
                             height - 0.1 - (number + 0.5) * ROW_IN)
    for importer, imported in imports().edges:
        (x0, y0), (x1, y1) = centres[importer], centres[imported]
        bend = 0.25 if abs(x0 - x1) < 0.1 and y0 - y1 > 1.5 * ROW_IN else 0.04
        axes.add_patch(FancyArrowPatch(
            (x0, y0 - BOX_IN[1] / 2), (x1, y1 + BOX_IN[1] / 2), arrowstyle="-|>", color="#7a8794",
            mutation_scale=10, linewidth=0.9, connectionstyle=f"arc3,rad={bend}", zorder=1))
    for name, (x, y) in centres.items():
        axes.add_patch(FancyBboxPatch(
            (x - BOX_IN[0] / 2, y - BOX_IN[1] / 2), *BOX_IN, boxstyle="round,pad=0.02",
            facecolor="white", edgecolor="0.25", zorder=2))
        axes.text(x, y + 0.07, name, ha="center", va="center", fontsize=11, weight="bold")
        axes.text(x, y - 0.13, f"{code_lines(name):,} lines", ha="center", va="center",
                  fontsize=7.5, color="0.4")
    return figure


if __name__ == "__main__":
    draw().savefig(ROOT / "docs" / "pictures" / "architecture.png")
