"""Weights & Biases: one run per Record, each written in one go when the Record is finished.

Online when logged in (``WANDB_API_KEY`` or netrc; ``WANDB_MODE`` is honoured), else offline, with
one line on how to upload. A run id is the Record's run_id and a counter, because W&B never lets a
deleted id come back (wandb issue 1192). Nothing of the environment, no console, no code and no
system metrics leave the machine; the config is an allow-list.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal
from urllib.parse import urlparse

from bitsweep.errors import UserError
from bitsweep.models.source import MANIFEST
from bitsweep.record import Record
from bitsweep.tracking import Entry, Say, Summary
from bitsweep.tracking.environment import environment
from bitsweep.tracking.flat import config, label, numbers, plain
from bitsweep.tracking.login import Mode, base_url, logged_in, resolve
from bitsweep.tracking.offline import SUPERSEDED, Offline

TAG_CAP = 64
FORBIDDEN = set("/\\#?%:")
"""Characters that W&B takes in no project's name."""
LEAVE_S = 5.0
QUIET = {"WANDB_ERROR_REPORTING": "false"}
"""Its error reports tell of folders."""
SETTINGS = {
    "console": "off",
    "silent": True,
    "disable_git": True,
    "disable_code": True,
    "save_code": False,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
    "program": "bitsweep",  # else the path of the script
}


@dataclass
class _State:
    """What this process has said and learnt; the options of a tracker are frozen."""

    fallen_back: bool = False
    url: str = ""


_state = _State()


@dataclass(frozen=True)
class Wandb:
    """``mode``: auto, online, offline or disabled. ``dir``: where W&B makes its folder ``wandb/``;
    empty means ``$WANDB_DIR``, else ``.bitsweep`` below the working directory. ``entity`` empty
    means your default one. ``init_timeout_s`` bounds how long a server that does not answer is
    waited for, once; this process goes on offline. ``finish_timeout_s`` bounds an upload.
    """

    project: str = "bitsweep"
    entity: str | None = None
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    tags: tuple[str, ...] = ()
    dir: str = ""
    init_timeout_s: float = 15.0
    finish_timeout_s: float = 60.0
    name: ClassVar[str] = "wandb"

    def __post_init__(self) -> None:
        """Raises ValueError where it could never work: said before a point is measured."""
        if not self.project or FORBIDDEN & {*self.project}:
            also = "; the entity has a key of its own" if "/" in self.project else ""
            raise ValueError(
                f"project={self.project}: takes a name without {' '.join(sorted(FORBIDDEN))}{also}"
            )
        for key in ("init_timeout_s", "finish_timeout_s"):
            if not getattr(self, key) > 0:
                raise ValueError(f"{key}={getattr(self, key):g}: takes seconds over 0")

    def destination(self) -> str:
        """``online HOST/ENTITY/PROJECT`` or ``offline FOLDER/ENTITY/PROJECT``."""
        mode = self.resolve_mode()
        if mode == "disabled":
            return ""
        place = urlparse(base_url()).netloc.rpartition("@")[2] if mode == "online" else None
        return f"{mode} {place or self.folder()}/{self._project()}"

    def place(self) -> str:
        """:meth:`destination` for a reader: the folder is one, the project is none."""
        folder = self.destination().removesuffix(f"/{self._project()}")
        project = f"{self.entity}/{self.project}" if self.entity else self.project
        return f"{folder}, project {project}" if folder else ""

    def has(self, ident: str) -> bool:
        """Whether an offline run is there, whole; online it is what the ledger says."""
        if self.resolve_mode() == "online":
            return True
        return self._offline().has(ident)

    def hint(self) -> str:
        """How to upload what is kept offline, or where it is seen."""
        if self.resolve_mode() == "offline":
            return f"W&B runs are kept offline; to upload: {self.sync_command()}"
        return f"W&B: {_state.url}" if _state.url else ""

    def log(self, record: Record, entry: Entry, say: Say) -> None:
        """One run: flat config columns, summary numbers under constant names, a table of layers."""
        tags = [record.point.get("model"), record.point.get("method"), record.status, *self.tags]

        def fill(run: Any) -> None:
            if entry.layers is not None:
                run.log({"layers": _table(entry.layers.columns, entry.layers.rows)})
            run.summary.update(numbers(record))
            for folder in entry.artifacts:
                run.log_artifact(_reference(record, folder))

        self._publish(
            entry,
            say,
            fill,
            name=label(record),
            group=record.experiment,
            job_type=record.kind,
            tags=[str(plain(tag))[:TAG_CAP] for tag in dict.fromkeys(tags) if tag],
            config=config(record),
            exit_code=1 if record.status == "failed" else 0,
        )

    def summarize(self, summary: Summary, entry: Entry, say: Say) -> None:
        """One run of job type ``report``: the front as a Table, its pictures, and the page."""
        import wandb

        def fill(run: Any) -> None:
            media = {path.stem: wandb.Image(str(path)) for path in summary.pictures}
            if summary.page:
                media["page"] = wandb.Html(summary.page, inject=False)
            run.log({"front": _table(summary.columns, summary.rows), **media})

        self._publish(
            entry,
            say,
            fill,
            name=f"{summary.experiment} report",
            group=summary.experiment,
            job_type="report",
            tags=[tag[:TAG_CAP] for tag in self.tags],
            config={"experiment": summary.experiment, "front_points": len(summary.rows)},
        )

    @environment(QUIET)
    def _publish(
        self, entry: Entry, say: Say, fill: Callable[[Any], None], exit_code: int = 0, **run: Any
    ) -> None:
        """Write one run, whole: offline in place of what is there, online over what is there.

        Raises:
            ConnectionError: the server is not reached; from here on this process writes offline.
            UserError: ``mode=online`` without a login.
        """
        mode = self.resolve_mode()
        if mode == "offline":
            kept = self._offline()
            kept.remove(entry.ident)
            made = self._write(mode, entry, fill, exit_code, **run)
            kept.keep(Path(made.dir).parent)
            for ident in entry.superseded:
                kept.set_aside(ident)
            return
        if not logged_in():
            raise UserError(
                "tracker.wandb.mode=online: W&B has no login here; type `wandb login` first, "
                "or write offline with tracker.wandb.mode=offline"
            )
        from wandb.errors import CommError

        try:
            made = self._write(mode, entry, fill, exit_code, **run)
        except (CommError, OSError) as error:  # a timeout of either kind is among them
            _state.fallen_back = True
            first = (str(error).splitlines() or [""])[0]
            raise ConnectionError(f"{type(error).__name__}: {first}") from error
        _state.url = made.project_url or ""
        for ident in entry.superseded:
            _supersede(f"{made.entity}/{made.project}/{ident}", say)

    def _write(
        self,
        mode: Mode,
        entry: Entry,
        fill: Callable[[Any], None],
        exit_code: int,
        **described: Any,
    ) -> Any:
        import wandb

        known = type(wandb.Settings()).model_fields  # the names that start with x_ come and go
        settings = {name: value for name, value in SETTINGS.items() if name in known}
        wandb.setup(settings=wandb.Settings(**settings))  # silent while it looks for a login too
        if mode == "online":
            settings["init_timeout"] = self.init_timeout_s
            settings["finish_timeout"] = self.finish_timeout_s
            settings["finish_timeout_raises"] = True
        place = self.folder().parent.absolute()  # its process keeps the working directory it had
        place.mkdir(parents=True, exist_ok=True)
        try:
            run = wandb.init(
                project=self.project,
                entity=self.entity or None,
                id=entry.ident,
                mode=mode,
                dir=str(place),
                reinit="finish_previous",
                settings=wandb.Settings(**settings),
                **described,
            )
            with _staged(run, mode):
                try:
                    fill(run)
                except BaseException:
                    run.finish(exit_code=1)
                    raise
                run.finish(exit_code=exit_code)
        except Exception:
            _let_go()
            raise
        return run

    def resolve_mode(self) -> Mode:
        """``mode`` as it is now: offline once a server was lost."""
        if _state.fallen_back and self.mode in ("auto", "online"):
            return "offline"
        return resolve(self.mode)

    def folder(self) -> Path:
        """Where run folders lie: W&B adds ``wandb`` to the directory that it is given."""
        return Path(self.dir or os.environ.get("WANDB_DIR") or ".bitsweep") / "wandb"

    def sync_command(self) -> str:
        """What uploads the offline runs of this folder."""
        return f"wandb sync {shlex.quote(str(self.folder()))}/offline-run-*"

    def _project(self) -> str:
        return f"{self.entity or 'default'}/{self.project}"

    def _offline(self) -> Offline:
        return Offline(self.folder(), self._project())


@contextmanager
def _staged(run: Any, mode: Mode) -> Iterator[None]:
    """Where W&B puts the copies of tables from which it uploads them; it tells the server where.

    By default that is the user's home. Of an offline run they are needed until it is uploaded.
    """
    if mode == "offline":
        with environment({"WANDB_DATA_DIR": str(Path(run.dir).parent)}):
            yield
        return
    with tempfile.TemporaryDirectory() as folder, environment({"WANDB_DATA_DIR": folder}):
        yield


def _let_go() -> None:
    """Leave W&B's own process: it holds the id of a run that it could not upload.

    It may go on trying for ever, which is not waited for.
    """
    import wandb

    leaving = threading.Thread(target=wandb.teardown, daemon=True)
    leaving.start()
    leaving.join(LEAVE_S)


def _table(columns: tuple[str, ...], rows: tuple[tuple[Any, ...], ...]) -> Any:
    import wandb

    data = [list(row) for row in rows]
    return wandb.Table(columns=list(columns), data=data, allow_mixed_types=True)


def _reference(record: Record, folder: Path) -> Any:
    """An exported checkpoint where it lies: its files' digests go up, its weights do not."""
    import wandb

    made = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    stem = re.sub(r"[^\w.-]", "-", str(plain(record.point.get("model"))))
    artifact = wandb.Artifact(
        name=f"{stem}-{record.run_id[:12]}-{made.get('format')}",  # of one name: a newer version
        type="quantized-model",
        metadata={**config(record), "export_format": made.get("format")},
    )
    artifact.add_reference(folder.resolve().as_uri())
    return artifact


def _supersede(path: str, say: Say) -> None:
    """Tag an older run; whatever W&B has against that, the new one is there."""
    import wandb

    try:
        run = wandb.Api().run(path)
        if SUPERSEDED not in run.tags:
            run.tags = [*run.tags, SUPERSEDED]
            run.update()
    except Exception as error:  # whatever a library or a server raises
        first = (str(error).splitlines() or [""])[0]
        say(f"wandb: {path} stays beside its newer run, not tagged {SUPERSEDED}: {first}")
