"""The docs say what the code says."""

import re
import subprocess
import tomllib
import unicodedata
from pathlib import Path

import pytest

from wua_mlflow.cli.options import COMMANDS
from wua_mlflow.config import COMMAND_FIELDS, Settings, config_names
from wua_mlflow.tracking.names import Metric

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
NAMES = (ROOT / "docs" / "mlflow.md").read_text()
DOCS = {path: path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]}


def test_configuration_lists_every_setting_with_its_default_and_commands():
    text = (ROOT / "docs" / "configuration.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` (\|.*\|)$", text, re.M))
    assert list(rows) == list(Settings.model_fields)
    for name, info in Settings.model_fields.items():
        cells = [cell.strip() for cell in rows[name].strip("|").split("|")]
        default = info.default
        if isinstance(default, tuple):
            default = ",".join(map(str, default))
        shown = "–" if default is None else f"`{str(default).replace('False', 'false')}`"
        commands = ", ".join(c for c, fields in COMMAND_FIELDS.items() if name in fields)
        assert cells == [shown, info.description, commands], name


def test_the_guide_to_mlflow_names_every_metric():
    metrics = [value for name, value in vars(Metric).items() if name.isupper()]
    named = [metric for metric in metrics if f"`{metric}`" in NAMES
             or metric.startswith(("accuracy/", "loss/validation"))
             or metric.removesuffix("_low").removesuffix("_high") in NAMES]
    assert named == metrics


def test_every_command_link_picture_and_make_target_that_the_docs_show_exists():
    shown = set(re.findall(r"^(?:`)?wua (\w+)", "\n".join(DOCS.values()), re.M))
    assert shown
    assert shown <= set(COMMANDS)
    named = set(re.findall(r"config[= ](\w+)\b(?!\.yaml)", "\n".join(DOCS.values())))
    assert named == {"digits", "breast_cancer"} <= set(config_names())
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`?make (\w+)`?", README)) - {"and"}:
        assert re.search(rf"^{target}:", makefile, re.M), target
    for path, text in DOCS.items():
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def anchors_of(text: str) -> set[str]:
    """As GitHub makes them of headings."""
    lines = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    kept = ("L", "M", "Nd", "Pc")  # "R²" is "r"
    return {"".join(letter for letter in heading.lower() if letter in "- "
                    or unicodedata.category(letter).startswith(kept)).replace(" ", "-")
            for heading in re.findall(r"^#+ (.*)$", lines, re.M)}


def test_every_link_to_a_heading_leads_to_one():
    pages = {path.name: anchors_of(text) for path, text in DOCS.items()}
    links = [(path.name, page or path.name, anchor) for path, text in DOCS.items()
             for page, anchor in re.findall(r"\]\((?:[^)#]*/)?([\w.]*)#([^)]+)\)", text)]
    assert len(links) > 20
    assert [link for link in links if link[2] not in pages[link[1]]] == []


def test_the_readmes_addresses_work_on_pypi_and_name_files_of_the_repository():
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    page, raw = f"{urls['Repository']}/blob/main/", urls["Repository"].replace(
        "github.com", "raw.githubusercontent.com") + "/main/"
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", README)
    assert [target for target in targets if not target.startswith("http")] == []
    files = [target.removeprefix(page).removeprefix(raw) for target in targets
             if target.startswith((page, raw))]
    assert [file for file in files if file.endswith(".png")]
    guides = {path.relative_to(ROOT).as_posix() for path in DOCS if path.parent != ROOT}
    assert guides - set(files) == {"docs/architecture.md"}, "the README leads to every guide"
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_nothing_in_the_repository_speaks_of_this_machine():
    try:
        files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True,
                               check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    pattern = re.compile("/" + "work/main|/" + "root/|/" + "tmp/x")
    hits = [name for name in files if name.endswith((".py", ".md", ".toml", ".yaml", ".txt", "run"))
            and pattern.search((ROOT / name).read_text(errors="ignore"))]
    assert hits == []


def test_the_architecture_names_every_package_and_no_place_that_is_not_there():
    """Nor does the contributing page; and the benchmarks' run is complete."""
    page = DOCS[ROOT / "docs" / "architecture.md"]
    names = {path.stem for path in (ROOT / "wua_mlflow").iterdir()
             if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert [name for name in names - {"__init__", "__main__"} if f"`{name}`" not in page] == []
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py")
               if "def main(" in path.read_text() and path.stem != "__main__"}
    runner = (ROOT / "benchmarks" / "__main__.py").read_text()
    assert {name for name in scripts if f'"{name}"' not in runner} == set()
    text = (ROOT / "CONTRIBUTING.md").read_text() + DOCS[ROOT / "docs" / "architecture.md"]
    named = re.findall(r"`([\w/]+\.(?:py|md|json)|tests/[\w/]+)`", text)
    assert len(named) > 20
    folders = (ROOT, ROOT / "wua_mlflow")
    assert [n for n in named if not any((folder / n).exists() for folder in folders)] == []
    places = re.findall(r"`((?:\w+/)+\w+)(?:\.(\w+))?(?:\.\w+)?`", text)
    for place, name in places:
        files = [ROOT / "wua_mlflow" / f"{place}.py", ROOT / "wua_mlflow" / place]
        if place.startswith(("tests", "docs", "wua_mlflow")):
            continue
        assert any(file.exists() for file in files), place
        if name and name != "py" and files[0].exists():
            assert re.search(rf"^(def|class) {name}\b", files[0].read_text(), re.M), (place, name)
