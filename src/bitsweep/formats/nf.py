"""Normal float: values at the quantiles of a normal distribution, 2 to 8 bits (NF4 of QLoRA).

Dettmers, Pagnoni, Holtzman & Zettlemoyer, 2023. With ``K = 2**bits`` codes, ``q`` the inverse of
the normal distribution and

    p = 1 - (1 / (2 (K - 1)) + 1 / (2 K)) / 2                          0.9677083 at 4 bits

the positive values are ``q`` at ``K / 2`` even steps from ``p`` to 1/2, 1/2 left out, the negative
ones ``-q`` at ``K / 2 - 1`` of them, and 0 is a value; all are divided by the largest. That is the
construction of bitsandbytes' NF4 for every width, and computed as there (``p`` to 7 places, float32
steps), so that the 4-bit table is NF4 to the last bit. There is one value more above 0 than below:
at 2 bits -1, 0, 0.44 and 1.

With ``scale_dtype=float32`` scales and codes are those of bitsandbytes. It rounds blocks of the
flattened weight, which are our groups where these divide a row, and stores a scale for zeros as 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitsweep.formats import Params
from bitsweep.formats._table import Table, kept
from bitsweep.spec import QuantSpec


class Nf(Table):
    """Quantiles of the normal distribution between -1 and 1, times a group's largest ``|w|``."""

    def table(self, params: Params, spec: QuantSpec) -> Tensor:
        return kept(quantiles, int(spec.bits), params["scale"].device)


def quantiles(bits: int) -> Tensor:
    """The ``2**bits`` values in rising order, float32."""
    count = 2**bits
    p = round(1 - (1 / (2 * (count - 1)) + 1 / (2 * count)) / 2, 7)

    def tail(steps: int) -> Tensor:
        return torch.special.ndtri(torch.linspace(p, 0.5, steps + 1)[:-1].double())

    positive, negative = tail(count // 2), -tail(count // 2 - 1)
    values = torch.cat([negative, torch.zeros(1, dtype=torch.float64), positive]).float()
    return values.sort().values / values.max()
