"""bitsweep: which quantization method, at how many bits, in which groups, on which layers?

``bitsweep.run(...)`` measures one point, ``bitsweep.load(...)`` reads Records into a DataFrame.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from bitsweep.record import Record

__version__ = "0.1.0"
__all__ = ["__version__", "load", "run"]


def run(*overrides: str) -> list[Record]:
    """Measure one point and keep its Records, as ``bitsweep run`` with these overrides does.

    ``bitsweep.run("model=reference", "method=gptq", "bits=3")``
    """
    from bitsweep import config

    return config.run(*overrides)


def load(*patterns: str) -> pd.DataFrame:
    """Records as a DataFrame, one row a point: ``bitsweep.load("results/mine")``."""
    from bitsweep import report

    return report.load(*patterns)


class _Package(ModuleType):
    """``bitsweep.run`` stays the function when Python binds the module ``run.py`` to that name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "run" or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
