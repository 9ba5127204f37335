"""Looks whether a tracking store can keep records, before MLflow is asked: it tries for minutes and hides the cause."""

from __future__ import annotations

import re
import sqlite3
import tempfile
import warnings
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from lwfed.tracking.mlflow.target import sqlite_path
from lwfed.types.errors import UnreachableError

DATABASES = ("postgresql", "mysql", "mssql")
ANOTHER = "set tracking.uri (or MLFLOW_TRACKING_URI) to a file that can be written, or to null for no MLflow"
SERVER = "set tracking.uri to the address of MLflow's server"
NOBODYS = "lwfed-asks-for-an-experiment-that-nobody-has"
LOCKED_S = 5.0


def check_place(uri: str) -> None:
    """Checks a tracking store on this machine or in a database; a server of MLflow is not asked. Leaves nothing behind.

    Args:
        uri: The tracking store, absolute.

    Raises:
        UnreachableError: It cannot be written, is not what the URI says, or does not answer.
    """
    scheme = urlsplit(uri).scheme.partition("+")[0]
    path = sqlite_path(uri)
    if path is not None:
        _check_sqlite(path)
    elif scheme in ("", "file"):
        _check_folder(Path(unquote(urlsplit(uri).path) if scheme else uri))
    elif scheme in DATABASES:
        _check_database(uri)


def check_server(uri: str) -> None:
    """Asks a tracking store whether it has experiments. Imports MLflow, which takes seconds.

    Raises:
        UnreachableError: It does not answer as MLflow does.
    """
    from mlflow import MlflowClient

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            client.search_experiments(max_results=1)
            strange = client.get_experiment_by_name(NOBODYS) is not None
    except Exception as error:  # of MLflow, its plugins and its database's driver
        problem, _, remedy = reason_of(error).partition(" -> ")
        raise UnreachableError(
            f"the tracking store {uri} cannot be used: {problem}", remedy=remedy or "start it, or set tracking.uri"
        ) from None
    if strange:  # it answers anything with an empty object
        raise UnreachableError(f"{uri} answers, but not as MLflow does", remedy=SERVER)


def reason_of(error: Exception) -> str:
    """Returns why MLflow failed, in one line; a web page in its message is replaced by what to do about it."""
    text = " ".join(str(error).split()) or type(error).__name__
    said, _, body = text.partition("Response body: ")
    if body.lstrip("'\"").startswith("<"):
        text = f"{said}It is a web page and not MLflow's API -> {SERVER}"
    return text if len(text) <= 300 else text[:299] + "…"


def _check_sqlite(path: Path) -> None:
    if not path.exists():
        _check_new(path, "the database")
        return
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=LOCKED_S)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.rollback()
    except sqlite3.Error as error:
        raise UnreachableError(f"MLflow's database {path} cannot be written: {error}", remedy=ANOTHER) from None
    _check_writable(path.parent, f"MLflow's database {path} has its journal in a folder that cannot be written")


def _check_folder(path: Path) -> None:
    if not path.exists():
        _check_new(path, "the folder")
    elif not path.is_dir():
        raise UnreachableError(
            f"MLflow's tracking store {path} is a file and not a folder",
            remedy=f"set tracking.uri to sqlite:///{path} if it is a database, else to another place",
        )
    else:
        _check_writable(path, f"MLflow's folder {path} cannot be written")


def _check_new(path: Path, what: str) -> None:
    """Checks that a file or folder can be created."""
    parent = path.absolute().parent
    if what == "the folder":
        parent = next(folder for folder in path.absolute().parents if folder.exists())
    _check_writable(parent, f"{what} {path} of MLflow cannot be created")


def _check_writable(folder: Path, problem: str) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UnreachableError(f"{problem}: {folder}: {error.strerror}", remedy=ANOTHER) from None


def _check_database(uri: str) -> None:
    import sqlalchemy

    hidden = re.sub(r"//[^@/]*@", "//", uri)
    try:
        engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.pool.NullPool)
        engine.connect().close()
    except (sqlalchemy.exc.SQLAlchemyError, ImportError, ValueError) as error:
        text = " ".join(str(error).split())[:200]
        raise UnreachableError(
            f"MLflow's database {hidden} cannot be used: {text}",
            remedy="start it, install its driver, or set tracking.uri to another place",
        ) from None
