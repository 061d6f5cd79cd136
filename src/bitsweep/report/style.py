"""How figures look: one column wide, colours that are told apart, no date in the file.

Colours are Okabe and Ito's (told apart by colour-blind eyes), each with a marker of its own.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import matplotlib
from fontTools import subset  # type: ignore[import-untyped]
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, fontManager
from matplotlib.ticker import LogFormatterSciNotation

PNG_DPI = 370  # a column becomes 1202 pixels, sharp on a page that shows it 600 wide
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5F5F5F", "#661100")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
SMALL_PT = 6.0
"""The smallest letters: smaller ones a printed page does not carry."""

INK, FAINT, PALE = "#222222", "#8A8A8A", "#E6E6E6"

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 7,
    "axes.labelsize": 7,
    "axes.titlesize": 7.5,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "legend.title_fontsize": 7.5,
    "axes.linewidth": 0.6,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.spines.top": False,
    "figure.dpi": 360,  # letters are laid out as wide as a PDF shows them, not rounded to pixels
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "svg.hashsalt": "bitsweep",
    "text.parse_math": False,  # a dollar in a name is a dollar
    "hatch.linewidth": 0.5,
}
LETTERS = (
    (0x20, 0x7E),
    (0xA0, 0x17F),
    (0x370, 0x3FF),
    (0x2010, 0x2027),
    (0x2070, 0x208E),
    (0x2190, 0x2265),
)
"""First and last code points of the small font: Latin, Greek, dashes, powers, arrows, operators."""

FAMILY = (1, 4, 16)
"""Entries of a font's table of names that say what it is called."""

POWER = re.compile(r"\^\{([^}]*)\}")
RAISED = str.maketrans("0123456789-−.", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁻·")

UNDATED: dict[str, dict[str, Any]] = {
    "pdf": {"metadata": {"CreationDate": None, "ModDate": None, "Producer": None}},
    "png": {"metadata": {}, "dpi": PNG_DPI},
}
"""Options of each file type: nothing in it tells when or by which build it was drawn."""

MAKER = {"pdf": "Creator", "png": "Software"}
"""The entry of each file type that says bitsweep; the file's own name is its title."""


class Powers(LogFormatterSciNotation):
    """Ticks of a logarithmic axis as text: ``10⁻²`` where matplotlib writes mathematics."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        text = super().__call__(x, pos).replace(r"\times", "×")
        text = POWER.sub(lambda found: found[1].translate(RAISED), text)
        return text.removeprefix(r"$\mathdefault{").removesuffix("}$")


def settle(figure: Figure) -> None:
    """Lay ``figure`` out, once and for all, at rounded places.

    The solver of constrained layouts orders its variables by their addresses, so that places differ
    in the last bit from process to process, enough to round a tenth decimal in a PDF the other way.
    """
    engine = figure.get_layout_engine()
    if engine is None:
        return
    engine.execute(figure)
    # None and not "none", which leaves a stand-in for which each file is drawn twice
    figure.set_layout_engine(None)
    for axes in figure.axes:
        left, bottom, width, height = axes.get_position().bounds
        axes.set_position((round(left, 6), round(bottom, 6), round(width, 6), round(height, 6)))
    if figure._suptitle is not None:  # type: ignore[attr-defined]  # has no public getter
        x, y = figure._suptitle.get_position()  # type: ignore[attr-defined]
        figure._suptitle.set_position((round(x, 6), round(y, 6)))  # type: ignore[attr-defined]


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write ``figure`` as every type of :data:`UNDATED`, the same bytes in every process."""
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if isinstance(axis.get_major_formatter(), LogFormatterSciNotation):
                axis.set_major_formatter(Powers())
            if isinstance(axis.get_minor_formatter(), LogFormatterSciNotation):
                axis.set_minor_formatter(Powers())
    settle(figure)
    written = []
    for suffix, options in UNDATED.items():
        path = folder / f"{name}.{suffix}"
        signed = options["metadata"] | {"Title": name, MAKER[suffix]: "bitsweep"}
        figure.savefig(path, format=suffix, **{**options, "metadata": signed})
        written.append(path)
    return written


def ours(path: Path) -> bool:
    """Whether :func:`save` wrote this file, and under this name: a copy is its maker's own."""
    body = path.read_bytes()
    if path.suffix == ".pdf":
        return b"/Creator (bitsweep)" in body and f"/Title ({path.stem})".encode() in body
    return b"Software\0bitsweep" in body and f"Title\0{path.stem}".encode() in body


@cache
def _small_font() -> str:
    """The name of DejaVu Sans without the letters that figures hardly use.

    Every PDF embeds the glyphs that it shows, and finding them among all 6,000 takes as long as
    drawing does. Other letters are taken from the whole font.
    """
    options = subset.Options(name_IDs=["*"], layout_features=["*"], recalc_timestamp=False)
    options.drop_tables += ["FFTM"]
    font = subset.load_font(findfont("DejaVu Sans"), options, lazy=True)
    smaller = subset.Subsetter(options)
    smaller.populate(unicodes=[code for first, last in LETTERS for code in range(first, last + 1)])
    smaller.subset(font)
    name = "DejaVu Sans of bitsweep"
    for entry in font["name"].names:
        if entry.nameID in FAMILY:
            entry.string = name
    folder = tempfile.mkdtemp(prefix="bitsweep-font-")
    # not atexit, which a worker of multiprocessing does not run
    Finalize(None, shutil.rmtree, (folder,), {"ignore_errors": True}, exitpriority=0)
    path = Path(folder) / "font.ttf"
    font.save(path)
    fontManager.addfont(path)
    return name


@contextmanager
def in_style() -> Iterator[None]:
    """Our style over matplotlib's own defaults, whatever the user has set."""
    fonts = {"font.family": [_small_font(), STYLE["font.family"]]}
    every: dict[Any, Any] = {**matplotlib.rcParamsDefault, **STYLE, **fonts}
    with matplotlib.rc_context(every):
        yield


def short_number(number: str) -> str:
    """``3.8e4`` for ``3.842e+04``: five letters are as many as an axis has room for."""
    digits, e, power = number.partition("e")
    sign = "+" if digits.startswith("+") else ""
    return f"{sign}{float(digits):.2g}e{int(power)}" if e else number


def slug(name: str) -> str:
    """``name`` as a part of a file's name."""
    return re.sub(r"[^A-Za-z0-9.@-]+", "-", name).strip("-.") or "model"
