"""The contract: what a change of the code's layout must leave as it is, held by ``contract.json``.

Where the contract itself is to change, write the file anew and review the difference:
``python tests/test_contract.py --write`` (in the repository's root).
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import inspect
import io
import json
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
os.environ["TQDM_DISABLE"] = "1"

import mlflow
import numpy as np
import pytest
import torch
import yaml
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from safetensors import safe_open
from torch import nn

import wua_mlflow as wua
import wua_mlflow.tracking
from wua_mlflow.tracking import names

# isort: split
# The imports that follow the code's layout, and are no part of the contract.
from wua_mlflow.cli.main import main
from wua_mlflow.config import (
    COMMAND_FIELDS,
    CRITERIA,
    WIDTH_METHODS,
    Settings,
    config_names,
    load_settings,
)
from wua_mlflow.rng import Purpose

ROOT = Path(__file__).resolve().parent.parent
CONTRACT = Path(__file__).with_name("contract.json")
QUERIES = ("predict", "runs", "best", "show")
"""The commands that take no configuration."""
NO_CONFIG, NO_SERVER = "no_such_configuration.yaml", "127.0.0.1:1"
SAMPLES: dict[str, list[tuple[Any, ...]]] = {
    "further_layers_table": [("wanda",), ("package.module:rule",)],
    "importance_plot": [("encoder.fc1",), ("a b/c[0]",), ("",)],
    "layer_metric": [("encoder.fc1", "entropy"), ("a b/c[0]", "units"), ("", "weights")],
    "keys_of": [(("fc1", "a/b", "a_b"),)],
    "logged_model_name": [("slim-2", (4, 3)), ("oversized", ())],
    "long_value": [("param", "layers")],
    "looks_tag": [("0123456789abcdef0123456789",)],
    "step_tag": [("train",), ("analyze",), ("compare",)],
}
"""Arguments of the helper functions of ``tracking/names.py``."""
UNIT_CRITERIA = ("spanning", "taylor", "magnitude", "random", "output", "wanda")
STABLE_TAGS = ("wua.kind", "wua.variant", "wua.task", "wua.criterion", "wua.confidence",
               "wua.null_kind", "wua.flop_convention", "wua.verdict", "wua.epochs_trained")
"""Tags whose values are held too; and those of the steps."""
PIPELINE = ("run --data rows.csv --target y --hidden 4 --epochs 30 --lr 0.03 --seeds 5 "
            "--null-draws 1 --criterion output,wanda --how prune --slim-hidden "
            "search --limit 2 --margin 0.2 --register contract --gate --json")
USER_CODE = """
import os, signal
def interrupted(seed): os.kill(os.getpid(), signal.SIGINT)
def terminated(seed): os.kill(os.getpid(), signal.SIGTERM)
"""

Section = dict[str, Any]


def wua_command(*words: str) -> tuple[int, str, str]:
    """The exit code of ``wua``, its standard output and its standard error."""
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        code = main(list(words))
    return code, out.getvalue(), error.getvalue()


def paths(value: object, at: str = "") -> list[str]:
    """The places of a JSON value, sorted: ``outer > inner``; ``[]`` stands for a list's items."""
    if isinstance(value, dict) and value:
        inner = [paths(item, f"{at} > {key}" if at else key) for key, item in value.items()]
    elif isinstance(value, list) and value:
        inner = [paths(item, f"{at}[]") for item in value]
    else:
        return [at]
    return sorted({path for places in inner for path in places})


# What needs no run


def names_section() -> Section:
    """Every string of ``tracking/names.py``; helpers as what they make of sample arguments."""
    public = {name: getattr(names, name) for name in names.__all__}
    constants = {name: {key: text for key, text in vars(value).items() if not key.startswith("_")}
                 for name, value in public.items() if inspect.isclass(value)}
    helpers = {name: {", ".join(map(repr, arguments)): helper(*arguments)
                      for arguments in SAMPLES[name]}
               for name, helper in public.items() if inspect.isfunction(helper)}
    return {"constants": constants, "helpers": helpers, "KINDS": names.KINDS}


def public_section() -> Section:
    """The public names and the parameters of the public functions, with their defaults."""
    modules = {"wua_mlflow": wua, "wua_mlflow.tracking": wua_mlflow.tracking}
    return {name: {"__all__": sorted(module.__all__), "parameters": {
        function: _parameters(getattr(module, function)) for function in module.__all__
        if callable(getattr(module, function))}} for name, module in modules.items()}


def _parameters(function: Callable[..., object]) -> list[str]:
    """As in its definition, without annotations."""
    parameters = inspect.signature(function).parameters.values()
    plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    shown = str(inspect.Signature(plain))
    return [part for part in shown.strip("()").split(", ") if part]


def mlproject_section() -> Section:
    """Entry points, parameters and commands."""
    project = yaml.safe_load((ROOT / "MLproject").read_text(encoding="utf-8"))
    for point in project["entry_points"].values():
        point["command"] = point["command"].split(" --")
        point["parameters"] = [f"{name}: {spec}" for name, spec in point["parameters"].items()]
    return dict(project)


def settings_section() -> Section:
    """Every setting with its default and what it accepts; who takes it; shipped configurations."""
    schema = Settings.model_json_schema()["properties"]
    fields = {name: {"default": Settings.model_fields[name].default, **{
        key: value for key, value in schema[name].items() if key not in ("title", "description")}}
        for name in Settings.model_fields}
    shipped = {name: load_settings(name).model_dump(mode="json", exclude_unset=True)
               for name in config_names()}
    return {"fields": fields, "commands": COMMAND_FIELDS, "configurations": shipped,
            "criteria": CRITERIA, "width methods": WIDTH_METHODS,
            "purposes": {purpose.name: int(purpose) for purpose in Purpose}}


def commands_section() -> Section:
    """By command its options in the help: whether they take a value, and underscores too."""
    code, text, _ = wua_command("--help")
    commands = re.findall(r"^ {2,4}([a-z]+) {2,}", text, re.MULTILINE)
    assert code == 0
    return {"wua": _help_options(text), **{command: _options(command) for command in commands}}


def _help_options(text: str) -> list[str]:
    """Options at the beginning of the help's lines, spelled with dashes."""
    columns = re.findall(r"^ {1,4}(-.*?)(?: {2}|$)", text, re.MULTILINE)
    options = {option.replace("_", "-") for column in columns
               for option in re.findall(r"--\w[\w-]*", column)}
    return sorted(f"--{option[2:]}" for option in options)


def _options(command: str) -> dict[str, str]:
    code, text, _ = wua_command(command, "--help-all")
    assert code == 0
    return {option: "help" if option.startswith("--help") else _use_of(command, option)
            for option in _help_options(text)}


def _use_of(command: str, option: str) -> str:
    value = _accepts(command, f"{option}=5") and _accepts(command, option, "5")
    flag = _accepts(command, option)
    kind = "value or none" if value and flag else "value" if value else "flag" if flag else "?"
    underscored = f"--{option[2:].replace('-', '_')}"
    if command in QUERIES or underscored == option:
        return kind
    return f"{kind}; {underscored}: {_accepts(command, f'{underscored}=5')}"


def _accepts(command: str, *words: str) -> bool:
    """Whether the command takes the words: it fails then at what comes after reading them."""
    if command in QUERIES:
        models = {"show": ["a_run"], "predict": ["a_run", "rows.csv"]}.get(command, [])
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", f"http://{NO_SERVER}")
            code, _, error = wua_command(command, *words, *models)
        return code == 1 and NO_SERVER in error
    code, _, error = wua_command(command, *words, "--config", NO_CONFIG)
    return code == 2 and NO_CONFIG in error


def results_section() -> Section:
    """Fields and public properties of the result types, from results of the public functions."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    inputs, targets = torch.randn(60, 3), torch.arange(60) % 2
    data = inputs, targets
    usages = {criterion: wua.analyze(model, [data], criterion=criterion, null=1,
                                     loss=nn.functional.cross_entropy, effective_rank=True)
              for criterion in CRITERIA}
    widths = {method: wua.recommend_widths(model, data, method=method)
              for method in WIDTH_METHODS if method != "search"}
    cuts = {criterion: wua.slim(model, data, widths={"0": 3}, criterion=criterion)
            for criterion in UNIT_CRITERIA}
    verdicts = _verdicts()
    results = [usages["output"], usages["output"].layers["0"], widths["ablation"],
               cuts["spanning"], verdicts[0], wua.count_flops(model, inputs)]
    types: Section = {}
    for result in results:
        _describe(result, type(result).__name__, types)
    return {
        "types": types,
        "criteria": {name: usage.criterion for name, usage in usages.items()},
        "width methods": {name: found.method for name, found in widths.items()},
        "criteria of units": {name: cut.units for name, cut in cuts.items()},
        "verdicts": [[verdict.kind, verdict.outcome, verdict.method] for verdict in verdicts],
    }


def _verdicts() -> list[Any]:
    """Of two models, right or wrong and by amounts; of two recipes."""
    right, worse = np.ones(2000), np.zeros(2000)
    amounts = np.random.default_rng(0).normal(size=(5, 40))
    return [wua.compare(right, right, margin=0.02), wua.compare(right, worse, margin=0.02),
            wua.compare(right[:40], right[:40], margin=0.02),
            wua.compare(amounts[0], amounts[1], margin=0.9, score="R²"),
            wua.compare(amounts, amounts[::-1], margin=0.9)]


def _describe(value: object, place: str, types: Section) -> None:
    """The dataclass at ``place``, and those that its fields hold."""
    if isinstance(value, Mapping | tuple) and value:
        first = next(iter(value.values() if isinstance(value, Mapping) else value))
        _describe(first, f"{place}[]", types)
    if not dataclasses.is_dataclass(value) or place in types:
        return
    fields = [field.name for field in dataclasses.fields(value)]
    public = {name: inspect.getattr_static(value, name) for name in dir(value)
              if not name.startswith("_") and name not in fields}
    types[place] = {
        "fields": fields,
        "properties": [name for name, what in public.items() if isinstance(what, property)],
        "methods": [name for name, what in public.items() if not isinstance(what, property)]}
    for name in fields:
        _describe(getattr(value, name), f"{place}.{name}", types)


STATIC: dict[str, Callable[[], Section]] = {
    "commands": commands_section,
    "mlproject": mlproject_section,
    "names": names_section,
    "public": public_section,
    "results": results_section,
    "settings": settings_section,
}


# What takes a store


def stored_sections(folder: Path) -> dict[str, Section]:
    """What one pipeline of a network that is cut writes, in a store in ``folder``; exit codes."""
    with _store_in(folder):
        _write_inputs(folder)
        codes = _exit_codes()
        code, text, error = wua_command(*PIPELINE.split())
        assert code == 0, error
        client = MlflowClient()
        runs = {run.data.tags.get("wua.variant", run.data.tags["wua.kind"]): run
                for run in client.search_runs(["1"])}
        written = {role: _written(folder, run) for role, run in runs.items()}
        formats = _formats(folder, runs["slim"])
        answers = _answers(text, runs)
        return {"codes": codes | {"best, with one": wua_command("best")[0]}, "formats": formats,
                "json": answers, "runs": written, "store": _store_names(client)}


@contextlib.contextmanager
def _store_in(folder: Path) -> Iterator[None]:
    """A store of its own, in which the block works."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME",
                     "MLFLOW_REGISTRY_URI"):
            patch.delenv(name, raising=False)
        patch.setattr(sys, "path", list(sys.path))
        patch.chdir(folder)
        uri = f"sqlite:///{folder / 'mlflow.db'}"
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        mlflow.set_tracking_uri(uri)
        try:
            yield
        finally:
            mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
            sys.modules.pop("contract_user", None)


def _write_inputs(folder: Path) -> None:
    (folder / "contract_user.py").write_text(USER_CODE)
    rows = np.random.default_rng(0).normal(size=(300, 3)).round(4)
    lines = [f"{a},{b},{c},{'yes' if a + b > 0 else 'no'}" for a, b, c in rows]
    (folder / "rows.csv").write_text("\n".join(["a,b,c,y", *lines]))
    truth = np.arange(400) % 2
    for name, wrong in {"a": 0, "same": 0, "close": 12, "wrong": 400}.items():
        guess = np.where(np.arange(400) < wrong, 1 - truth, truth)
        table = "\n".join(f"{first},{second}" for first, second in zip(guess, truth, strict=True))
        (folder / f"{name}.csv").write_text(f"prediction,target\n{table}\n")


def _exit_codes() -> dict[str, int]:
    """By the words after ``wua``."""
    lines = ["", "--help", "--version", "run --help", "rnu", "--vresion", "run --epohcs 5",
             "run --epoch 5", "run --epochs 0", "run --epochs", "run digits", "train a_word",
             f"run --config {NO_CONFIG}", "run --gate maybe", "analyze --confidence 2",
             "runs --limit x", "runs a_word", "show", "show a b c", "show no_such_run", "best",
             "runs", "compare", "compare a.csv", "compare a.csv same.csv wrong.csv",
             "compare a.csv no_such_file.csv", "compare a.csv same.csv --margin 2",
             "compare a.csv same.csv", "compare a.csv close.csv", "compare a.csv wrong.csv",
             "compare a.csv --margin 0.02 wrong.csv", "compare --baseline a.csv --candidate a.csv",
             "analyze", "slim", "train --data no_such_file.csv",
             "train --data contract_user:interrupted", "train --data contract_user:terminated"]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    try:
        return {line: wua_command(*line.split())[0] for line in lines}
    finally:
        signal.signal(signal.SIGINT, before)


def _written(folder: Path, run: Run) -> Section:
    """Names of everything in a run, and our files in its model."""
    tags = {name: value if name in STABLE_TAGS or name.startswith("wua.step.") else "…"
            for name, value in sorted(run.data.tags.items())
            if not name.startswith("mlflow.source.git.")}  # as MLflow finds them, or not
    assert run.inputs is not None
    assert run.outputs is not None
    models = sorted(path for output in run.outputs.model_outputs
                    for path in _files(folder, f"models/{output.model_id}")
                    if path.startswith(("state/", "data/", "config")))
    contexts = [tag.value for data in run.inputs.dataset_inputs for tag in data.tags]
    return {"tags": tags, "params": sorted(run.data.params), "metrics": sorted(run.data.metrics),
            "artifacts": _files(folder, run.info.run_id), "datasets": sorted(contexts),
            "model files": models}


def _files(folder: Path, place: str) -> list[str]:
    root = folder / "mlruns" / "1" / place / "artifacts"
    names = (path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    return sorted(re.sub(r"\+timestamp\+.*?(?=\+compressed|\.)", "+timestamp+…", name)
                  for name in names)


def _formats(folder: Path, run: Run) -> Section:
    """What the files of a slim variant hold: places in JSON, columns, tensors with their types."""
    root = folder / "mlruns" / "1" / run.info.run_id / "artifacts"
    texts = {path.relative_to(root).as_posix(): json.loads(path.read_text(encoding="utf-8"))
             for path in sorted(root.rglob("*.json"))}
    tensors: dict[str, object] = {}
    for path in sorted(root.rglob("*.safetensors")):
        with safe_open(path, "pt") as file:
            tensors[path.relative_to(root).as_posix()] = {
                name: str(file.get_tensor(name).dtype) for name in sorted(file.keys())}
    return {**{name: paths(value) for name, value in texts.items()}, **tensors,
            "columns": {name: value["columns"] for name, value in texts.items()
                        if "columns" in value},
            "structure format": texts["state/structure.json"]["format"],
            "config.yaml": sorted(yaml.safe_load((root / "config.yaml").read_text()))}


def _store_names(client: MlflowClient) -> Section:
    """Tags of the experiment and of the version in the registry; the version's alias."""
    version, = client.search_model_versions("name = 'contract'")
    alias = client.get_registered_model("contract").aliases
    return {"experiment": client.get_experiment("1").name, "aliases": sorted(alias),
            "experiment tags": [re.sub(r"[0-9a-f]{16}", "DIGEST", tag)
                                for tag in sorted(client.get_experiment("1").tags)],
            "version tags": sorted(version.tags)}


def _answers(pipeline: str, runs: Mapping[str, Run]) -> Section:
    """Places in the JSON of each command, and columns of the CSV."""
    original, slim = (runs[name].info.run_id for name in ("oversized", "slim"))
    lines = ["runs --json", "runs --kind pipeline --json", "best --json", f"show {slim} --json",
             f"show {original} {slim} --json", "compare a.csv wrong.csv --json",
             f"compare {original} {slim} --json", f"compare --run-id {slim} --json"]
    roles = {run.info.run_name: role for role, run in runs.items()}
    whole = json.loads(pipeline)
    whole["variants"] = {roles[name]: values for name, values in whole["variants"].items()}
    answers = {"run": paths(whole)}
    for line in lines:
        answers[_anonymous(line)] = paths(json.loads(wua_command(*line.split())[1]))
    for line in ("runs --csv", "best --csv", f"show {slim} --csv", f"show {original} {slim} --csv"):
        header = wua_command(*line.split())[1].splitlines()[0]
        answers[_anonymous(line)] = _anonymous(header).split(",")
    return answers


def _anonymous(text: str) -> str:
    return re.sub(r"[0-9a-f]{32}", "RUN", text)


STORED = ("codes", "formats", "json", "runs", "store")


# The comparison


def as_text(value: object) -> str:
    """As the file has it: sorted, indented."""
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def difference(section: str, value: object) -> str:
    """What a section of the contract says otherwise than ``value``, as lines; empty if nothing."""
    contract = json.loads(CONTRACT.read_text(encoding="utf-8"))
    return "\n".join(difflib.unified_diff(
        as_text(contract[section]).splitlines(), as_text(value).splitlines(),
        f"contract.json: {section}", "the code", lineterm="", n=6))


def test_the_contract_has_these_sections() -> None:
    assert sorted(json.loads(CONTRACT.read_text(encoding="utf-8"))) == sorted([*STATIC, *STORED])


@pytest.mark.parametrize("section", STATIC)
def test_contract(section: str) -> None:
    if changed := difference(section, STATIC[section]()):
        pytest.fail(f"the contract is broken:\n{changed}", pytrace=False)


def test_contract_of_what_is_written(
    tmp_path: Path, migrated_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One test of all these sections, so that the pipeline runs once."""
    from tests.conftest import blank_pictures

    shutil.copy(migrated_database, tmp_path / "mlflow.db")
    blank_pictures(monkeypatch)
    sections = stored_sections(tmp_path)
    assert sorted(sections) == sorted(STORED)
    changes = filter(None, (difference(name, value) for name, value in sections.items()))
    if changed := "\n\n".join(changes):
        pytest.fail(f"the contract is broken:\n{changed}", pytrace=False)


@pytest.mark.parametrize("command", [*COMMAND_FIELDS, *QUERIES])
def test_an_unknown_option_is_not_taken(command: str) -> None:
    """Else the section ``commands`` would show nothing."""
    assert _accepts(command)
    assert not _accepts(command, "--no-such-option=5")
    assert not _accepts(command, "--no-such-option")


def write() -> None:
    """Write ``contract.json`` as the code is now."""
    with tempfile.TemporaryDirectory() as folder:
        sections = {name: section() for name, section in STATIC.items()}
        CONTRACT.write_text(as_text({**sections, **stored_sections(Path(folder))}),
                            encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/test_contract.py --write")
    write()
