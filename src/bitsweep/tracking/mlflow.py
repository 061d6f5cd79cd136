"""MLflow: one run per Record, in a database file or on a server.

A run is found again by the tags ``bitsweep.id`` and ``bitsweep.digest``, so that publishing twice,
from another machine or without a ledger, makes it once. The client is used below MLflow's fluent
API, which would add the user's name, the script's path and the git commit by itself.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

from bitsweep.artifacts import digest
from bitsweep.models.source import MANIFEST
from bitsweep.record import Record
from bitsweep.tracking import Entry, Say, Summary
from bitsweep.tracking.environment import environment
from bitsweep.tracking.flat import config, label, numbers, period, plain

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEFAULT = "sqlite:///.bitsweep/mlflow.db"
VARIABLE = "MLFLOW_TRACKING_URI"
SQLITE = "sqlite:///"
SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")
TABLES = "mlflow.loggedArtifacts"
"""The tag by which MLflow knows its tables among the files of a run."""
ID, DIGEST, SUPERSEDED = "bitsweep.id", "bitsweep.digest", "bitsweep.superseded"
NO_ANSWER = re.compile(r"API request to https?://.* failed with (timeout )?exception")
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


@dataclass(frozen=True)
class Mlflow:
    """``tracking_uri``: a database (``sqlite:///FILE``) or a server (``http://HOST:PORT``); empty
    means ``$MLFLOW_TRACKING_URI``, else ``sqlite:///.bitsweep/mlflow.db``. ``timeout_s`` bounds
    each request to a server, which is not repeated.
    """

    tracking_uri: str = ""
    timeout_s: float = 15.0
    name: ClassVar[str] = "mlflow"

    def __post_init__(self) -> None:
        """Raises ValueError where it could never work: said before a point is measured."""
        uri = self._uri()
        scheme = uri.partition(":")[0].partition("+")[0]
        if scheme not in SCHEMES:
            key = "tracking_uri" if self.tracking_uri else VARIABLE
            raise ValueError(
                f"{key}={_bare(uri)}: MLflow keeps runs in a database or on a server; "
                "try sqlite:///mlflow.db or http://localhost:5000"
            )
        if not self.timeout_s >= 1:
            raise ValueError(f"timeout_s={self.timeout_s:g}: takes seconds from 1")
        needed = ("mlflow", "sqlalchemy", "alembic") if scheme == "sqlite" else ("mlflow",)
        missing = [name for name in needed if find_spec(name) is None]
        if missing:
            raise ValueError(f"{missing[0]} is not installed; pip install 'bitsweep[mlflow]'")

    def destination(self) -> str:
        """The database or server, without user and password."""
        return _bare(self._uri())

    def has(self, ident: str) -> bool:
        """Whether the database file is there; of a server it is what the ledger says."""
        file = self._file()
        return file is None or file.is_file()

    def hint(self) -> str:
        """What opens MLflow's page over the database file, or the server."""
        if self._file() is None:
            return f"MLflow: {self.destination()}"
        page = f"mlflow ui --backend-store-uri {self.destination()}"
        return f"MLflow: {page}" if _has_page() else f"MLflow: {page} ({_whole()})"

    def log(self, record: Record, entry: Entry, say: Say) -> None:
        """One run: columns as parameters, numbers as metrics, a table of layers."""
        tags = {
            "kind": record.kind,
            "status": record.status,
            "bitsweep.run_id": record.run_id,
            "bitsweep.point_id": record.point_id,
            "bitsweep.attempt": entry.ident.rpartition("-")[2],
            DIGEST: digest(record.to_json()),
        }
        begun, done = (round(1000 * moment) for moment in period(record))

        def fill(client: MlflowClient, run_id: str) -> None:
            from mlflow.entities import Metric, Param

            given = {k: v for k, v in config(record).items() if v is not None}
            values = {k: v for k, v in numbers(record).items() if v is not None}
            client.log_batch(
                run_id,
                metrics=[Metric(name, value, done, 0) for name, value in values.items()],
                params=[Param(name, shown(value)) for name, value in given.items()],
            )
            for folder in entry.artifacts:
                made = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
                text = json.dumps(_placeless(made), indent=1, ensure_ascii=False)
                client.log_text(run_id, text, f"exported/{folder.name}/{MANIFEST}")

        name = label(record)
        status = "FAILED" if record.status == "failed" else "FINISHED"
        layers = entry.layers
        tables = {} if layers is None else {"layers.json": _table(layers.columns, layers.rows)}
        self._publish(record.experiment, entry, name, tags, tables, fill, (begun, done), status)

    def summarize(self, summary: Summary, entry: Entry, say: Say) -> None:
        """One run of the kind ``report``: the front as a table, the page and the pictures."""
        tags = {"kind": "report", DIGEST: digest([summary.experiment, summary.rows])}

        def fill(client: MlflowClient, run_id: str) -> None:
            if summary.page:
                client.log_text(run_id, summary.page, "index.html")
            for picture in summary.pictures:
                client.log_artifact(run_id, str(picture), "figures")

        name = f"{summary.experiment} report"
        tables = {"front.json": _table(summary.columns, summary.rows)}
        self._publish(summary.experiment, entry, name, tags, tables, fill)

    def _publish(
        self,
        experiment: str,
        entry: Entry,
        name: str,
        tags: Mapping[str, str],
        tables: Mapping[str, str],
        fill: Callable[[MlflowClient, str], None],
        period_ms: tuple[int, int] | None = None,
        status: str = "FINISHED",
    ) -> None:
        """Write one run. Until it is terminated it counts as a part, which the next try replaces.

        Raises:
            ConnectionError: the server is not reached.
        """
        with self._client() as client:
            place = self._experiment(client, experiment)
            for run in _find(client, place, {ID: entry.ident, DIGEST: tags[DIGEST]}):
                if run.info.status != "RUNNING" and not entry.again:
                    return
                client.delete_run(run.info.run_id)
            begun, done = period_ms or (None, None)
            shown_as = json.dumps([{"path": file, "type": "table"} for file in tables])
            made = client.create_run(
                place,
                start_time=begun,
                tags={**tags, ID: entry.ident, **({TABLES: shown_as} if tables else {})},
                run_name=name,
            )
            for file, text in tables.items():
                client.log_text(made.info.run_id, text, file)
            fill(client, made.info.run_id)
            client.set_terminated(made.info.run_id, status, done)
            for ident in entry.superseded:
                for run in _find(client, place, {ID: ident}):
                    client.set_tag(run.info.run_id, SUPERSEDED, entry.ident)

    @contextmanager
    def _client(self) -> Iterator[MlflowClient]:
        """A client alone with its database file, quiet, with bounded patience for a server."""
        patience = {
            "MLFLOW_HTTP_REQUEST_TIMEOUT": str(round(self.timeout_s)),
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        }
        with environment({**QUIET, **patience}), self._alone():
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException

            file = self._file()
            if file is not None and not file.exists():
                _make_database(file)
            # MLflow keeps its connections by this text: a relative path would stay in the folder
            # that the process was in when it was first used.
            uri = self._uri() if file is None else f"{SQLITE}{file.absolute()}"
            try:
                yield MlflowClient(tracking_uri=uri, registry_uri=uri)
            except MlflowException as error:
                if not NO_ANSWER.match(str(error)):
                    raise
                raise ConnectionError(f"{_bare(self._uri())} does not answer") from error

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One writer at a time: SQLite waits five seconds for another, then fails."""
        file = self._file()
        if file is None:
            yield
            return
        from filelock import FileLock

        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_name(f".{file.name}.lock")):
            yield

    def _experiment(self, client: MlflowClient, name: str) -> str:
        """The id of the MLflow experiment ``name``; a database file keeps artifacts beside it."""
        known = client.get_experiment_by_name(name)
        if known is not None:
            return str(known.experiment_id)
        file = self._file()
        place = None if file is None else (file.parent / "mlflow-artifacts" / name).resolve()
        return str(client.create_experiment(name, place.as_uri() if place else None))

    def _uri(self) -> str:
        return self.tracking_uri or os.environ.get(VARIABLE) or DEFAULT

    def _file(self) -> Path | None:
        """The database file of SQLite."""
        uri = self._uri()
        return Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


def _make_database(file: Path) -> None:
    """MLflow's tables, under another name until all are there: half of them can not be mended."""
    from mlflow import MlflowClient

    part = file.with_name(f".{file.name}.partial")
    for left in file.parent.glob(f"{part.name}*"):
        left.unlink()
    MlflowClient(
        tracking_uri=f"{SQLITE}{part}", registry_uri=f"{SQLITE}{part}"
    ).search_experiments()
    part.replace(file)


def _has_page() -> bool:
    """Whether the page's files are installed; the small package has none."""
    found = find_spec("mlflow")
    places = found.submodule_search_locations if found else None
    return any(Path(place, "server/js/build").is_dir() for place in places or ())


def _whole() -> str:
    return f"where mlflow=={version('mlflow-skinny')} is installed whole"


def shown(value: str | int | float | bool) -> str:
    """A column as MLflow has it, text: ``4``, ``0.5``, ``true``, and words as they are."""
    return value if isinstance(value, str) else json.dumps(value)


def _find(client: MlflowClient, experiment_id: str, tags: Mapping[str, str]) -> Sequence[Any]:
    asked = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
    found: Sequence[Any] = client.search_runs([experiment_id], asked)
    return found


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """As MLflow's page and ``load_table`` read one; its ``log_table`` costs more than the run."""
    return json.dumps({"columns": columns, "data": rows}, ensure_ascii=False)


def _placeless(value: Any) -> Any:
    """A manifest without absolute paths."""
    if isinstance(value, Mapping):
        return {key: _placeless(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_placeless(item) for item in value]
    return plain(value) if isinstance(value, str) else value


def _bare(uri: str) -> str:
    """``uri`` without user and password."""
    host = urlsplit(uri).netloc
    return uri.replace(host, host.rpartition("@")[2], 1) if "@" in host else uri
