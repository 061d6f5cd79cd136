"""``run`` and ``sweep``: the verbs that measure."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bitsweep import cli
from bitsweep.compose import (
    CONFIG_NAME,
    compose,
    experiment_overrides,
    experiments,
    hydra_app,
    normal,
    one_line_errors,
)
from bitsweep.config import command_line, job
from bitsweep.errors import UserError, refused_by_machine

if TYPE_CHECKING:
    from bitsweep.point import Point
    from bitsweep.sweep import Session

INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")


class Parser(argparse.ArgumentParser):
    """Mistakes become UserErrors, like everywhere else."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(f"{self.prog.partition(' ')[2]}: {message}; see {self.prog} --help")


def parser(verb: str) -> Parser:
    """The flags that ``run``, ``sweep`` and ``plan`` share; everything else is an override."""
    made = Parser(prog=f"bitsweep {verb}", add_help=False, allow_abbrev=False)
    made.add_argument("overrides", nargs="*")
    made.add_argument("--config-dir", "-cd")
    return made


def run(argv: list[str]) -> int:
    """``bitsweep run``: one point, or with ``-m`` a sweep; or only its configuration."""
    flags = parser("run")
    flags.add_argument("--multirun", "-m", action="store_true")
    flags.add_argument("--cfg", "-c", choices=("job", "hydra", "all"))
    flags.add_argument("--resolve", action="store_true")
    flags.add_argument("--package", "-p")
    flags.add_argument("--info", "-i", nargs="?", const="all", choices=INFO)
    flags.add_argument("--shell-completion", "-sc", action="store_true")
    given = flags.parse_intermixed_args(argv)
    if given.shell_completion:
        from bitsweep.commands import complete

        return complete.answer(given.overrides)
    if given.cfg or given.info:
        _show_configuration(given)
        return cli.OK
    if given.multirun:
        return _sweep(given.overrides, given.config_dir, command_line("run", argv))
    return _single(given.overrides, given.config_dir, argv)


def sweep(argv: list[str]) -> int:
    """``bitsweep sweep NAME``: the missing points of an experiment, then its report."""
    given = parser("sweep").parse_intermixed_args(argv)
    name, overrides = named(given.overrides, "sweep")
    check_paper(name, overrides)
    return _sweep(
        [*experiment_overrides(name), *overrides], given.config_dir, command_line("sweep", argv)
    )


def named(arguments: Sequence[str], verb: str) -> tuple[str, list[str]]:
    """The experiment's name and the overrides behind it."""
    if not arguments or "=" in arguments[0]:
        known = ", ".join(sorted(experiments())) or "none yet"
        raise UserError(f"{verb}: takes the NAME of an experiment first; there are {known}")
    return arguments[0], list(arguments[1:])


def check_paper(name: str, overrides: Sequence[str]) -> None:
    """What the experiment's file says under ``paper:`` is looked at before anything is measured.

    Raises:
        UserError: it is not in the language of docs/paper.md, or names what no Record can have.
    """
    from bitsweep.report.paper import vocabulary

    vocabulary.check(name, overrides)


def _show_configuration(given: argparse.Namespace) -> None:
    overrides = normal(given.overrides)
    with hydra_app(overrides, given.config_dir) as hydra, one_line_errors():
        if given.info:
            hydra.show_info(given.info, config_name=CONFIG_NAME, overrides=overrides)
            return
        hydra.show_cfg(
            config_name=CONFIG_NAME,
            overrides=overrides,
            cfg_type=given.cfg,
            package=given.package,
            resolve=given.resolve,
        )


def _single(overrides: list[str], config_dir: str | None, argv: list[str]) -> int:
    for override in overrides:
        if override.startswith("grids="):
            raise UserError(f"{override}: several points are a sweep; use bitsweep run -m")
    composed = compose(overrides, config_dir)
    wanted = job(composed, command_line("run", argv))
    from bitsweep.sweep import Session

    session = Session()
    try:
        candidate = session.settle(wanted)
        if candidate.fate == "done":
            print("measured before: force=true measures it again")
        session.single(candidate)
    except KeyboardInterrupt:
        session.progress.close()
        print("stopped; nothing of this point was kept", file=sys.stderr)
        return cli.STOPPED
    from bitsweep.commands.plan import slack

    if slack(candidate):
        print(f"budget  {slack(candidate)}")
    for record in session.outcomes[-1].records:
        print(f"{record.kind:<8}bitsweep show {record.run_id[:12]}")
    print(f"next    {_next(wanted.point)}")
    return cli.FAILED if session.failed else cli.OK


def _sweep(overrides: list[str], config_dir: str | None, command: str) -> int:
    from bitsweep.sweep import Session, launch

    session = Session()
    try:
        launch(overrides, session, config_dir)
        _report(session, command)
    except (KeyboardInterrupt, OSError) as stopped:
        session.progress.close()
        done, code, why = session.finished, cli.STOPPED, "stopped"
        if isinstance(stopped, OSError):
            code, why = cli.MISTAKE, refused_by_machine(stopped) or ""
            if not done or not why:
                raise
        kept = "1 finished point is kept" if done == 1 else f"{done} finished points are kept"
        print(f"{why}; {kept}; go on with: {command}", file=sys.stderr)
        return code
    if session.candidates and all(item.fate == "refused" for item in session.candidates):
        return cli.MISTAKE
    return cli.FAILED if session.failed else cli.OK


def _report(session: Session, command: str) -> None:
    """Tables, fronts and page of what is there now; a report that fails costs no Record."""
    from bitsweep import report

    if not session.candidates:
        return
    point = session.candidates[0].job.point
    merged = [(c.label, c.reason) for c in session.candidates if c.fate == "merged"]
    try:
        report.keep_merged(point.folder, merged)
        written = report.write(point.folder, question=question(point.experiment), command=command)
    except UserError as reason:
        print(f"no report: {reason}")
        return
    failed = len(session.failed)
    following = f"{command}   (the {failed} failed again)" if failed else ""
    report.summary(written, session.progress.console, next_command=following)
    session.mirror_report(written)


def _next(point: Point) -> str:
    """The report, or why there would be none: this point was measured unlike those before it."""
    from bitsweep.report.frame import check_protocols
    from bitsweep.store import Store

    try:
        check_protocols(Store(point.folder).records(warn=lambda _: None))
    except UserError as apart:
        return f"a report needs one protocol; {apart}"
    return _report_command(point)


def _report_command(point: Point) -> str:
    place = ["--results-dir", str(point.results_dir)] * (point.results_dir != Path("results"))
    return command_line("report", [point.experiment, *place])


def question(experiment: str) -> str:
    """The question that an experiment's file opens with: its first comment lines."""
    path = experiments().get(experiment)
    if path is None:
        return ""
    return opening(path)


def sweeping(experiment: str) -> str:
    """The command that measures it; empty where no file of this name says what to measure."""
    return command_line("sweep", [experiment]) if experiment in experiments() else ""


def opening(path: Path) -> str:
    """The comment at the head of a YAML up to its first empty line."""
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        text = line.lstrip("#").strip()
        if not line.startswith("#") or not text or text.startswith("@package"):
            break
        lines.append(text)
    return " ".join(lines)
