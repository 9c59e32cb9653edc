"""The form of a tracking URI: what was meant where one is not an address of a store.

Imports the standard library only. Tests: ``tests/test_tracking_uri.py``.
"""

from __future__ import annotations

import os
import re
from importlib.metadata import entry_points
from importlib.util import find_spec

from wua_mlflow.redaction import redacted_address

__all__ = ["VARIABLE", "check_tracking_uri", "missing_driver", "variable_of"]


VARIABLE, REGISTRY_VARIABLE = "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"
SERVERS = ("http", "https", "databricks", "databricks-uc", "uc")
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
DRIVERS = {
    "postgresql": (("psycopg2", "psycopg2-binary"), ("psycopg", "psycopg[binary]")),
    "mysql": (("pymysql", "pymysql"), ("MySQLdb", "mysqlclient")),
    "mssql": (("pyodbc", "pyodbc"), ("pymssql", "pymssql")),
}
"""Of each database: modules that connect to it, and the packages that they are installed by."""
_DRIVER_WORDS = {"MySQLdb": "mysqldb"}
"""What SQLAlchemy calls a driver, where it is not its module's name."""
_OF_SQLITE = "sqlite:///mlflow.db (or sqlite:////absolute/path/mlflow.db)"


def variable_of(uri: str) -> str:
    """The variable that the URI came from; that of the tracking URI, where it came by Python."""
    other = os.environ.get(REGISTRY_VARIABLE) == uri != os.environ.get(VARIABLE)
    return REGISTRY_VARIABLE if other else VARIABLE


def check_tracking_uri(uri: str) -> None:
    """Whether MLflow can read the URI; its own errors name neither the variable nor the remedy.

    Raises:
        ValueError: it cannot; the line names the variable and the form that was meant.

    >>> check_tracking_uri("127.0.0.1:5000")
    Traceback (most recent call last):
    ValueError: MLFLOW_TRACKING_URI: expected an address with its scheme, but got \
'127.0.0.1:5000'; a tracking server is named as http://127.0.0.1:5000
    """
    expected = _meant(uri)
    if expected:
        shown = redacted_address(uri) if "://" in uri else re.sub("^[^/]*@", "…@", uri)
        raise ValueError(f"{variable_of(uri)}: expected {expected[0]}, but got '{shown}'; "
                         f"{expected[1]}")


def _meant(uri: str) -> tuple[str, str] | None:
    """What was expected, and the form that was meant; None where MLflow can read it."""
    scheme, separator, rest = uri.partition("://")
    kind, _, driver = scheme.partition("+")
    if not uri or uri in SERVERS or kind.startswith(("databricks", "uc:")):
        return None
    if re.match(r"[A-Za-z]:[\\/]", uri):
        return _database_for(uri.replace("\\", "/"))
    if uri.startswith("sqlite:"):
        return None if re.match(r"sqlite(\+\w+)?:///|sqlite(\+\w+)?://(\?.*)?$", uri) else (
            "a SQLite database with three slashes, or four", f"as in {_OF_SQLITE}")
    if served := re.match(r"(?:[^/]*@)?([\w.\-]+:\d+(/.*)?|localhost(/.*)?)$", uri):
        return ("an address with its scheme",
                f"a tracking server is named as http://{served[1]}")
    if uri.startswith("file:") or not separator:
        return _database_for(re.sub("^file:(//)?", "", uri))
    if kind == "postgres":
        return ("a database that SQLAlchemy knows",
                f"write postgresql{'+' if driver else ''}{driver}:// for {scheme}://")
    if kind in (*SERVERS, *DATABASES):
        return None if rest else ("a host after ://", f"as in {scheme}://host")
    if kind in {point.name for point in entry_points(group="mlflow.tracking_store")}:
        return None
    return ("an address that MLflow knows",
            f"as in http://127.0.0.1:5000, {_OF_SQLITE}, postgresql://user@host/name")


def _database_for(folder: str) -> tuple[str, str] | None:
    """A folder of files: MLflow takes it only where it is told to."""
    if os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() in ("true", "1"):
        return None
    inside = re.sub(r"^\./", "", folder.rstrip("/"))
    place = re.sub(r"(^|/)mlruns$", "", inside)
    return ("a database or a server, since MLflow no longer keeps runs in a folder of files",
            f"a database is named as sqlite:///{place}{place and '/'}mlflow.db; "
            f"`mlflow migrate-filestore` copies old runs into one")


def missing_driver(uri: str) -> str:
    """What to install, where no driver for the database of the URI is there; else ''.

    >>> missing_driver("sqlite:///mlflow.db")
    ''
    """
    kind, _, driver = uri.partition("://")[0].partition("+")
    known = DRIVERS.get(kind, ())
    there = [module for module, _ in known if find_spec(module)]
    words = [_DRIVER_WORDS.get(module, module) for module in there]
    if not known or driver in words:
        return ""
    if words:  # SQLAlchemy takes its own choice where none is named
        return f"write {kind}+{words[0]}://… for the driver that is installed"
    module, package = next(((module, package) for module, package in known
                            if _DRIVER_WORDS.get(module, module) == driver), known[0])
    named = driver or _DRIVER_WORDS.get(module, module)
    return f"pip install '{package}', and write {kind}+{named}://…"
