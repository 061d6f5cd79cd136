"""``paper``: every table and figure of the paper from the Records, and whether they are these."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bitsweep import cli
from bitsweep.commands.launch import Parser
from bitsweep.config import command_line
from bitsweep.errors import UserError
from bitsweep.report.paper import typeset
from bitsweep.report.paper.language import sections

MOST_SHOWN, MOST_SKIPPED = 20, 3


def paper(argv: list[str]) -> int:
    """``bitsweep paper``; ``--check`` writes nothing and fails where something would change."""
    flags = Parser(prog="bitsweep paper", add_help=False)
    flags.add_argument("--check", action="store_true")
    flags.add_argument("--rerun", action="store_true")
    flags.add_argument("--no-pdf", action="store_true")
    flags.add_argument("--results-dir", type=Path, default=Path("results"))
    flags.add_argument("--out", type=Path, default=Path("paper"))
    given = flags.parse_args(argv)
    if given.check and given.rerun:
        raise UserError("paper --check --rerun: one of them; --check never measures")
    from bitsweep.report.paper import build

    if given.check:
        return _check(build.differences(given.out, given.results_dir))
    if given.rerun:
        code = _rerun(given.results_dir)
        if code == cli.STOPPED:
            print(f"stopped; go on with: {command_line('paper', argv)}", file=sys.stderr)
        if code != cli.OK:
            return code
    known, others = build.folders(given.results_dir)
    if others:
        print(f"skipped  {', '.join(p.name for p in others)}: of no experiment in experiments/")
    build.reports(known)
    made = build.build(given.out, given.results_dir)
    lines = made.skipped
    if len(lines) > MOST_SKIPPED:
        names = ", ".join(line.partition(":")[0] for line in lines)
        lines = (f"{len(lines)} experiments without Records in {given.results_dir}: {names}",)
    for line in lines:
        print(f"skipped  {line}")
    floats = [each for written in made.written for each in written.floats]
    tables = sum(each.kind == "tables" for each in floats)
    counts = ((tables, "table"), (len(floats) - tables, "figure"))
    made_of = ", ".join(f"{number} {kind}{'s' * (number != 1)}" for number, kind in counts)
    print(f"wrote    {made_of}: see {given.out}/README.md")
    _typeset(given.out / "tables.tex", given.no_pdf)
    return cli.OK


def _check(differ: list[str]) -> int:
    """Say which files are not what the Records give."""
    for line in differ[:MOST_SHOWN]:
        print(line)
    if differ:
        more = f"{len(differ)} files; " if len(differ) > MOST_SHOWN else ""
        raise UserError(f"paper --check: {more}run `bitsweep paper` and commit what it changes")
    print("every table and figure is what the Records give")
    return cli.OK


def _rerun(results: Path) -> int:
    """Sweep each section's experiment, in the paper's order: a budget comes after its scores."""
    for section in sections():
        command = ["sweep", section.experiment, f"results_dir={results}"]
        print(f"bitsweep {' '.join(command)}", flush=True)
        code = _wait([sys.executable, "-m", "bitsweep", *command])
        if code not in (cli.OK, cli.FAILED):
            return code
    return cli.OK


def _wait(command: list[str]) -> int:
    """The exit code of ``command``; Ctrl-C reaches it as well, and it ends in its own time."""
    with subprocess.Popen(command) as running:
        try:
            return running.wait()
        except KeyboardInterrupt:
            running.wait()
            return cli.STOPPED


def _typeset(document: Path, left_out: bool) -> None:
    """``tables.pdf`` where there is a LaTeX, else the line that says how to get one."""
    target = document.with_suffix(".pdf")
    if left_out:
        print(f"skipped  {target}: --no-pdf")
    elif typeset.engine() is None:
        print(f"skipped  {target}: there is no pdflatex; {typeset.INSTALL}")
    else:
        for line in typeset.compile_pdf(document):
            print(f"warning  {line}")
        print(f"wrote    {target}")
