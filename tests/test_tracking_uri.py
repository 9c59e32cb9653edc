"""Forms of tracking URIs that people write and MLflow does not read, or reads as something else."""

import os
import subprocess
import sys

import pytest

from tests.conftest import MLFLOW_VARIABLES
from wua_mlflow import tracking_uri
from wua_mlflow.tracking_uri import check_tracking_uri, missing_driver

MEANT = [
    ("127.0.0.1:5000", "http://127.0.0.1:5000"),
    ("localhost:5000", "http://localhost:5000"),
    ("localhost", "http://localhost"),
    ("mlflow.my-firm.org:8080/team", "http://mlflow.my-firm.org:8080/team"),
    ("./mlruns", "sqlite:///mlflow.db"),
    ("mlruns", "sqlite:///mlflow.db"),
    ("/srv/mlruns", "sqlite:////srv/mlflow.db"),
    ("file:///srv/runs", "sqlite:////srv/runs/mlflow.db"),
    ("file:runs", "sqlite:///runs/mlflow.db"),
    ("C:\\mlruns", "sqlite:///C:/mlflow.db"),
    ("D:/team/runs", "sqlite:///D:/team/runs/mlflow.db"),
    ("sqlite:mlflow.db", "sqlite:///mlflow.db"),
    ("sqlite://mlflow.db", "sqlite:///mlflow.db"),
    ("postgres://db/mlflow", "postgresql://"),
    ("ftp://db/mlflow", "http://127.0.0.1:5000"),
    ("http://", "http://host"),
]


@pytest.mark.parametrize(("uri", "meant"), MEANT)
def test_the_line_names_the_variable_and_the_form_that_was_meant(uri, meant):
    with pytest.raises(ValueError) as error:
        check_tracking_uri(uri)
    line = str(error.value)
    assert line.startswith("MLFLOW_TRACKING_URI: expected ")
    assert f"but got '{uri}'" in line and meant in line and "where, order_by" not in line
    assert len(line) < 300 and "\n" not in line


@pytest.mark.parametrize("uri", [
    "", "http://127.0.0.1:5000", "https://host/mlflow", "sqlite:///mlflow.db", "sqlite://",
    "sqlite:////home/ann b/mlflow.db", "postgresql://ann:pw@db/mlflow", "mysql+pymysql://db/m",
    "mssql+pyodbc://db/m", "databricks", "databricks://profile", "databricks-uc", "uc"])
def test_addresses_that_mlflow_reads_pass(uri):
    check_tracking_uri(uri)


def test_a_scheme_that_a_plugin_brings_passes(monkeypatch):
    class Point:
        name = "mystore"

    monkeypatch.setattr(tracking_uri, "entry_points", lambda group: [Point] * (
        group == "mlflow.tracking_store"))
    check_tracking_uri("mystore://db")
    with pytest.raises(ValueError, match="^MLFLOW_TRACKING_URI"):
        check_tracking_uri("another://db")


def test_a_folder_of_files_passes_where_mlflow_is_told_to_take_it(monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    check_tracking_uri("./mlruns")


def test_the_registry_s_variable_is_named_and_no_password_is_shown(monkeypatch):
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "ann:s3cr3tword@127.0.0.1:5000")
    with pytest.raises(ValueError, match="^MLFLOW_REGISTRY_URI: ") as error:
        check_tracking_uri("ann:s3cr3tword@127.0.0.1:5000")
    assert "s3cr3tword" not in str(error.value)


@pytest.mark.parametrize(("uri", "there", "remedy"), [
    ("postgresql://db/m", (), "pip install 'psycopg2-binary', and write postgresql+psycopg2://…"),
    ("postgresql://db/m", ("psycopg2",),
     "write postgresql+psycopg2://… for the driver that is installed"),
    ("postgresql+psycopg://db/m", (), "pip install 'psycopg[binary]', and write postgresql+ps"),
    ("postgresql+psycopg2://db/m", ("psycopg2",), ""),
    ("mysql://db/m", ("MySQLdb",), "write mysql+mysqldb://…"),
    ("mysql+pymysql://db/m", (), "pip install 'pymysql', and write mysql+pymysql://…"),
    ("mssql://db/m", (), "pip install 'pyodbc'"),
    ("sqlite:///mlflow.db", (), ""),
    ("http://host", (), ""),
])
def test_what_to_install_for_a_database(uri, there, remedy, monkeypatch):
    monkeypatch.setattr(tracking_uri, "find_spec", lambda module: module in there or None)
    assert missing_driver(uri).startswith(remedy) and bool(missing_driver(uri)) == bool(remedy)


@pytest.mark.parametrize("command", [
    ["run", "--seeds", "1"], pytest.param(["runs"], marks=pytest.mark.slow),
    pytest.param(["best"], marks=pytest.mark.slow)])
def test_every_command_says_it_in_a_line_before_anything_is_computed(command, tmp_path):
    kept = {name: value for name, value in os.environ.items() if name not in MLFLOW_VARIABLES}
    done = subprocess.run([sys.executable, "-m", "wua_mlflow", *command], cwd=tmp_path, text=True,
                          env={**kept, "MLFLOW_TRACKING_URI": "127.0.0.1:5000"},
                          capture_output=True, timeout=600)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and not done.stdout
    assert line.startswith("wua: MLFLOW_TRACKING_URI: ") and "http://127.0.0.1:5000" in line
    assert not list(tmp_path.iterdir()), "nothing is made"
