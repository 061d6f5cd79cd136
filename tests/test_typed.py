"""Plain values to dataclasses: the right type, or one line that says which."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from bitsweep.errors import UserError
from bitsweep.typed import build, describe, fit, target


@dataclass(frozen=True)
class Inner:
    size: int = 1


@dataclass(frozen=True)
class Options:
    name: str
    damping: float = 0.01
    windows: int | None = None
    clip: Literal["none", "mse"] = "none"
    texts: tuple[str, ...] = ()
    inner: Inner = field(default_factory=Inner)

    def __post_init__(self) -> None:
        if self.damping < 0:
            raise ValueError("damping is negative")


def test_values_take_the_types_of_their_fields() -> None:
    given = {"name": "a", "damping": 1, "texts": ["x", "y"], "inner": {"size": 3}}
    built = build(Options, "method", given)
    assert built == Options("a", damping=1.0, texts=("x", "y"), inner=Inner(3))
    assert isinstance(built.damping, float)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"name": "a", "dampin": 1}, "method.dampin=1: no such key; did you mean damping"),
        ({"damping": 1}, "method.name: must be given"),
        ({"name": 1}, "method.name=1: takes text"),
        ({"name": "a", "damping": "lots"}, "method.damping=lots: takes a number"),
        ({"name": "a", "damping": True}, "method.damping=true: takes a number"),
        ({"name": "a", "windows": 1.5}, "method.windows=1.5: takes a whole number or null"),
        ({"name": "a", "clip": "msee"}, "takes one of none, mse; did you mean mse"),
        ({"name": "a", "texts": "x"}, r"method\.texts=x: takes a list; write method\.texts=\[x\]$"),
        ({"name": "a", "inner": {"size": "big"}}, "method.inner.size=big: takes a whole number"),
        ({"name": "a", "damping": -1}, "method: damping is negative"),
    ],
)
def test_a_wrong_value_names_its_key_and_what_it_takes(value: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(Options, "method", value)


def test_a_target_outside_bitsweep_needs_to_be_listed() -> None:
    with pytest.raises(UserError, match=r"if you trust this package, add plugins=\[os\]"):
        target("method", {"_target_": "os.system", "command": "true"})


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("bitsweep.methods.nothing.Nothing", "can not be imported"),
        ("bitsweep.point.label", "is not a dataclass"),
    ],
)
def test_a_target_is_a_dataclass_that_is_there(path: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        target("method", {"_target_": path})


def test_a_listed_package_may_name_a_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_lab.py").write_text(
        "from dataclasses import dataclass\n\n\n@dataclass\nclass Mine:\n    k: int = 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    mine = target("method", {"_target_": "my_lab.Mine", "k": 2}, ["my_lab"])
    assert mine.k == 2


def test_types_are_told_in_the_users_words() -> None:
    assert describe(int | None) == "a whole number or null"
    assert fit("threads", None, int | None) is None
