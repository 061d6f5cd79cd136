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
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal
from urllib.parse import urlparse

from bitsweep.errors import UserError
from bitsweep.record import Record
from bitsweep.tracking import MANIFEST, Entry, Say, Summary
from bitsweep.tracking.flat import config, label, numbers, plain
from bitsweep.tracking.login import base_url, logged_in

Mode = Literal["online", "offline", "disabled"]
TAG_CAP = 64
LEAVE_S = 5.0
SUPERSEDED = "superseded"
MARK = "bitsweep-project"
"""A file beside an offline run that is whole: the project that it is for."""
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
}


@dataclass
class _State:
    """What this process has said and learnt; the options of a tracker are frozen."""

    fallen_back: bool = False
    url: str = ""


_state = _State()
_listed: dict[Path, tuple[int, dict[str, list[Path]]]] = {}


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

    def destination(self) -> str:
        """``online HOST/ENTITY/PROJECT`` or ``offline FOLDER/ENTITY/PROJECT``."""
        mode = self.resolve_mode()
        if mode == "disabled":
            return ""
        place = urlparse(base_url()).netloc.rpartition("@")[2] if mode == "online" else None
        return f"{mode} {place or self.folder()}/{self._project()}"

    def has(self, ident: str) -> bool:
        """Whether an offline run is there, whole; online it is what the ledger says."""
        if self.resolve_mode() == "online":
            return True
        return any(_project_of(folder) == self._project() for folder in self._offline(ident))

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
            fill,
            name=f"{summary.experiment} report",
            group=summary.experiment,
            job_type="report",
            tags=[tag[:TAG_CAP] for tag in self.tags],
            config={"experiment": summary.experiment, "front_points": len(summary.rows)},
        )

    def _publish(
        self, entry: Entry, fill: Callable[[Any], None], exit_code: int = 0, **run: Any
    ) -> None:
        """Write one run, whole: offline in place of what is there, online over what is there.

        Raises:
            ConnectionError: the server is not reached; from here on this process writes offline.
            UserError: ``mode=online`` without a login.
        """
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # stack traces tell of folders
        mode = self.resolve_mode()
        if mode == "offline":
            for folder in self._offline(entry.ident):
                if _project_of(folder) in (None, self._project()):
                    gone = folder.rename(folder.with_name(f".{folder.name}"))
                    shutil.rmtree(gone, ignore_errors=True)  # a killed one's process may write yet
            made = self._write(mode, entry, fill, exit_code, **run)
            (Path(made.dir).parent / MARK).write_text(self._project(), encoding="utf-8")
            for ident in entry.superseded:
                self._set_aside(ident)
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
            _supersede(f"{made.entity}/{made.project}/{ident}")

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
        """``mode``, or for ``auto`` what WANDB_MODE says, or whether there is a login."""
        if _state.fallen_back and self.mode in ("auto", "online"):
            return "offline"
        asked = self.mode if self.mode != "auto" else os.environ.get("WANDB_MODE", "")
        asked = {"dryrun": "offline", "run": "online"}.get(asked, asked)
        if asked in ("online", "offline", "disabled"):
            return asked  # type: ignore[return-value]
        return "online" if logged_in() else "offline"

    def folder(self) -> Path:
        """Where run folders lie: W&B adds ``wandb`` to the directory that it is given."""
        return Path(self.dir or os.environ.get("WANDB_DIR") or ".bitsweep") / "wandb"

    def sync_command(self) -> str:
        """What uploads the offline runs of this folder."""
        return f"wandb sync {shlex.quote(str(self.folder()))}/offline-run-*"

    def _set_aside(self, ident: str) -> None:
        """Move an older run out of what is uploaded next, unless it was uploaded."""
        for folder in self._offline(ident):
            if _project_of(folder) == self._project() and not any(folder.glob("*.synced")):
                aside = self.folder() / SUPERSEDED
                aside.mkdir(exist_ok=True)
                folder.rename(aside / folder.name)

    def _project(self) -> str:
        return f"{self.entity or 'default'}/{self.project}"

    def _offline(self, ident: str) -> list[Path]:
        """Folders of this run; the names in a folder of ten thousand are read once a change."""
        try:
            changed = self.folder().stat().st_mtime_ns
        except FileNotFoundError:
            return []
        known = _listed.get(self.folder())
        fresh = time.time_ns() - changed < 10**9  # a second change may bear the same time
        if known is None or known[0] != changed or fresh:
            names: dict[str, list[Path]] = {}
            for path in self.folder().glob("offline-run-*"):  # offline-run-DATE_TIME-ID
                names.setdefault(path.name.split("-", 3)[-1], []).append(path)
            known = _listed[self.folder()] = (changed, names)
        return known[1].get(ident, [])


def _let_go() -> None:
    """Leave W&B's own process: it holds the id of a run that it could not upload.

    It may go on trying for ever, which is not waited for.
    """
    import wandb

    leaving = threading.Thread(target=wandb.teardown, daemon=True)
    leaving.start()
    leaving.join(LEAVE_S)


def _project_of(folder: Path) -> str | None:
    """Whose an offline run is; None of one that was not finished (ids are unique in a project)."""
    try:
        return (folder / MARK).read_text(encoding="utf-8")
    except OSError:
        return None


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
        name=f"{stem}-{record.run_id[:12]}",
        type="quantized-model",
        metadata={**config(record), "export_format": made.get("format")},
    )
    artifact.add_reference(folder.resolve().as_uri())
    return artifact


def _supersede(path: str) -> None:
    """Tag an older run; whatever W&B has against that, the new one is there."""
    import wandb

    with suppress(Exception):
        run = wandb.Api().run(path)
        if SUPERSEDED not in run.tags:
            run.tags = [*run.tags, SUPERSEDED]
            run.update()
