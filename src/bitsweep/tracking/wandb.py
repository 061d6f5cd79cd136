"""Weights & Biases: one run per Record, each written in one go when the Record is finished.

Online when logged in (``WANDB_API_KEY`` or netrc; ``WANDB_MODE`` is honoured), else offline, with
one line on how to upload. A run id is the Record's run_id and a counter, because W&B never lets a
deleted id come back (wandb issue 1192). Nothing of the environment, no console, no code and no
system metrics leave the machine; the config is an allow-list.
"""

from __future__ import annotations

import netrc
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal
from urllib.parse import urlparse

from bitsweep.artifacts import digest
from bitsweep.record import Record
from bitsweep.tracking import Say, Summary
from bitsweep.tracking.flat import Scalar, config, numbers, plain

Mode = Literal["online", "offline", "disabled"]
TAG_CAP = 64
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
    said: set[str] = field(default_factory=set)

    def once(self, line: str, say: Say) -> None:
        if line not in self.said:
            self.said.add(line)
            say(line)


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

    def log(self, record: Record, say: Say) -> None:
        """One run: flat config columns, summary numbers under constant names."""
        tags = [record.point.get("model"), record.point.get("method"), record.status, *self.tags]
        self._publish(
            say,
            stem=record.run_id[:32],
            name=str(record.point.get("label") or record.run_id[:12]),
            group=record.experiment,
            job_type=record.kind,
            tags=[str(plain(tag))[:TAG_CAP] for tag in dict.fromkeys(tags) if tag],
            config=config(record),
            values=numbers(record),
            exit_code=1 if record.status == "failed" else 0,
        )

    def summarize(self, summary: Summary, say: Say) -> None:
        """One run of job type ``report`` that carries the front as a Table, and its pictures."""
        import wandb

        def values() -> dict[str, Any]:
            table = wandb.Table(
                columns=list(summary.columns),
                data=[list(row) for row in summary.rows],
                allow_mixed_types=True,
            )
            pictures = {path.stem: wandb.Image(str(path)) for path in summary.pictures}
            return {"front": table, **pictures}

        self._publish(
            say,
            stem=f"report-{digest([summary.experiment, summary.rows])[:24]}",
            name=f"{summary.experiment} report",
            group=summary.experiment,
            job_type="report",
            tags=[tag[:TAG_CAP] for tag in self.tags],
            config={"experiment": summary.experiment, "front_points": len(summary.rows)},
            media=values,
        )

    def _publish(self, say: Say, **run: Any) -> None:
        mode = self.resolve_mode()
        if mode == "disabled":
            return
        if mode == "online":
            try:
                self._write("online", **run)
                return
            except Exception as error:
                _state.fallen_back = True
                first = (str(error).splitlines() or [""])[0]
                say(f"tracker=wandb: {type(error).__name__}: {first}; going on offline")
        self._write("offline", **run)
        _state.once(
            f"W&B runs are kept offline; to upload: wandb sync {self.folder()}/offline-run-*",
            say,
        )

    def _write(
        self,
        mode: Mode,
        *,
        stem: str,
        config: dict[str, Scalar],
        values: dict[str, float | None] | None = None,
        media: Any = None,
        exit_code: int = 0,
        **described: Any,
    ) -> None:
        import wandb

        known = type(wandb.Settings()).model_fields  # the names that start with x_ come and go
        settings = {name: value for name, value in SETTINGS.items() if name in known}
        wandb.setup(settings=wandb.Settings(**settings))  # silent while it looks for a login too
        if mode == "online":
            settings["init_timeout"] = self.init_timeout_s
            settings["finish_timeout"] = self.finish_timeout_s
        place = self.folder().parent
        place.mkdir(parents=True, exist_ok=True)
        run = wandb.init(
            project=self.project,
            entity=self.entity or None,
            id=f"{stem}-{self.attempt(stem)}",
            config=config,
            mode=mode,
            dir=str(place),
            reinit="finish_previous",
            settings=wandb.Settings(**settings),
            **described,
        )
        try:
            if media is not None:
                run.log(media())
            if values is not None:
                run.summary.update(values)
        except BaseException:
            run.finish(exit_code=1)
            raise
        run.finish(exit_code=exit_code)

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

    def attempt(self, stem: str) -> int:
        """1, or one more than the newest run folder of this Record."""
        ends = (re.search(r"-(\d+)$", path.name) for path in self.folder().glob(f"*run-*-{stem}-*"))
        return 1 + max((int(end[1]) for end in ends if end), default=0)


def logged_in() -> bool:
    """Whether W&B would find credentials, without asking it or the network."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname
    file = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        return netrc.netrc(str(file)).authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False
