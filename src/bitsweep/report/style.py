"""How figures look: one column wide, colours that are told apart, no date in the file.

Colours are Okabe and Ito's (told apart by colour-blind eyes), each with a marker of its own.
"""

from __future__ import annotations

import re
from typing import Any

COLUMN_IN = 3.25
PNG_DPI = 370  # a column becomes 1202 pixels, sharp on a page that shows it 600 wide
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5F5F5F", "#B8A800")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
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
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "svg.hashsalt": "bitsweep",
    "hatch.linewidth": 0.5,
}
UNDATED: dict[str, dict[str, Any]] = {
    "pdf": {"metadata": {"CreationDate": None, "ModDate": None, "Producer": None}},
    "png": {"metadata": {"Software": None}, "dpi": PNG_DPI},
}
"""Options of each file type: nothing in it tells when or by which build it was drawn."""


def slug(name: str) -> str:
    """``name`` as a part of a file's name."""
    return re.sub(r"[^A-Za-z0-9.@-]+", "-", name).strip("-.") or "model"
