"""What a latency is of, as its name and signature say it, and when it is not to be believed.

Probes and reports share this; it needs no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

STRAY = 0.10
"""Further from 1 than this, the null comparison says that something else ran on the machine."""

WIDE = 2.0
"""A 95 % interval whose ends are further apart than this factor can not tell a speed from half of
it, or from twice as much: something else ran while some of its rounds were taken."""

TIMES = (
    "decode_ms", "decode_vs_bf16", "decode_vs_fp32",
    "prefill_ms", "prefill_vs_bf16", "prefill_vs_fp32",
)  # fmt: skip
"""Of whose intervals that is asked."""

IMPOSSIBLE = 1.1
"""Share of the measured bandwidth above which weights can not have come from memory."""

ENGINE = re.compile(r"\|engine:([^|]*)")
"""What a latency's signature says of who executed the point."""

SIGNED = re.compile(r"\|(batch|prompt|threads):(\d+)")
SUFFIX = re.compile(r"(?:b(\d+)p(\d+))?(?:t(\d+))?")


def is_time(metric: str) -> bool:
    """Whether it is a speed or a time, whose own interval is how far its repetitions differ."""
    return metric.startswith(("decode_", "prefill_"))


def unrest(values: Mapping[str, float]) -> float:
    """How much else was at work while ``values`` were taken: above 1 it was too much to believe
    them. They are plain metrics of one shape, intervals with ``.lo`` and ``.hi`` behind the name.
    """
    strays = [values.get(name, 0.0) / STRAY for name in ("decode_noise", "prefill_noise")]
    ends = [(values.get(f"{name}.lo", 0.0), values.get(f"{name}.hi", 0.0)) for name in TIMES]
    return max(*strays, *(hi / lo / WIDE if lo > 0 else 0.0 for lo, hi in ends))


@dataclass(frozen=True, order=True)
class Shape:
    """``batch`` sequences with a prompt of ``prompt`` tokens each, on ``threads`` threads."""

    threads: int
    batch: int
    prompt: int

    def suffix(self, first: Shape) -> str:
        """What the names of its metrics end in: ``""`` for ``first``, else ``/b4p512t1``.

        Batch and prompt, or threads, are left out where they are those of ``first``.
        """
        size = f"b{self.batch}p{self.prompt}"
        same = (self.batch, self.prompt) == (first.batch, first.prompt)
        text = ("" if same else size) + (
            "" if self.threads == first.threads else f"t{self.threads}"
        )
        return f"/{text}" if text else ""

    def signed(self) -> str:
        """The part of a signature that says which shape the metrics with plain names have."""
        return f"|prompt:{self.prompt}|batch:{self.batch}|threads:{self.threads}"

    @classmethod
    def read(cls, signature: str, suffix: str = "") -> Shape | None:
        """The inverse: of a plain metric's ``signature``, and what follows the ``/``; or None."""
        known = {name: int(value) for name, value in SIGNED.findall(signature)}
        said = SUFFIX.fullmatch(suffix)
        if len(known) < 3 or said is None:
            return None
        batch, prompt, threads = said.groups()
        return cls(
            threads=int(threads or known["threads"]),
            batch=int(batch or known["batch"]),
            prompt=int(prompt or known["prompt"]),
        )

    def __str__(self) -> str:
        plural = "" if self.threads == 1 else "s"
        return f"batch {self.batch}, prompt {self.prompt}, {self.threads} thread{plural}"
