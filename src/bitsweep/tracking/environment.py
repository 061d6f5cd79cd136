"""Variables that a tracker's library is to find."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """``values`` for as long as a library works, those of the user's own left as they are."""
    own = [name for name in values if name not in os.environ]
    os.environ.update({name: values[name] for name in own})
    try:
        yield
    finally:
        for name in own:
            os.environ.pop(name, None)
