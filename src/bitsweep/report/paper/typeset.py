"""``tables.pdf`` with a real LaTeX, which proves that every table typesets."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from bitsweep.errors import UserError

INSTALL = "apt-get install texlive-latex-recommended texlive-fonts-recommended"
OVERFULL = re.compile(r"Overfull \\hbox \((\d+\.\d+)pt too wide\).*")
TOLERATED_PT = 1.0


def engine() -> str | None:
    """The path of pdflatex; None where there is none."""
    return shutil.which("pdflatex")


def compile_pdf(document: Path) -> list[str]:
    """Write ``document``'s PDF beside it; returns a line for each box that is too wide.

    Raises:
        UserError: LaTeX stopped; says where.
    """
    program = engine()
    assert program is not None, "asked before"
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [program, "-interaction=nonstopmode", "-halt-on-error", "-file-line-error",
             f"-output-directory={folder}", document.name],
            cwd=document.parent, capture_output=True, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        log = done.stdout.decode("utf-8", "replace").replace("\r", "")
        made = Path(folder) / document.with_suffix(".pdf").name
        if done.returncode or not made.exists():
            wrong = [line for line in log.splitlines() if re.match(r"\S+:\d+: |! ", line)]
            raise UserError(f"{document}: LaTeX stopped: {(wrong or ['no output'])[0]}")
        shutil.copyfile(made, document.with_suffix(".pdf"))
    return [
        found[0] for found in OVERFULL.finditer(log) if float(found[1]) > TOLERATED_PT
    ]  # fmt: skip
