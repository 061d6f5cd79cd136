"""A sweep's points are composed as Hydra composes them, reading the groups' files once."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from bitsweep.compose import CONFIG_NAME, hydra_app, normal
from bitsweep.composer import Composer

AXES = {
    "group": ["method=rtn", "method=gptq"],
    "list": ["transforms=[rotate,smooth]", "transforms=[]"],
    "of a group": ["+experiments=demo"],
    "mapping": ["model={dtype: bfloat16}", "model.path=x"],
    "value": ["bits=3", "++data.window=16"],
}


class Counting:
    """Hydra's loader, and how often it was asked."""

    def __init__(self, loader: Any) -> None:
        self.loader, self.asked = loader, 0

    def load_sweep_config(self, master: DictConfig, overrides: list[str]) -> DictConfig:
        self.asked += 1
        composed: DictConfig = self.loader.load_sweep_config(master, overrides)
        return composed

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)


def test_composes_what_hydra_composes_and_asks_it_once_for_equal_choices() -> None:
    arguments = normal(["+experiments=demo"])
    with hydra_app(arguments) as hydra:
        master = hydra.compose_config(
            CONFIG_NAME, [*arguments, "hydra.mode=MULTIRUN", "seed=1"], RunMode.MULTIRUN
        )
        counting = Counting(hydra.config_loader)
        composer = Composer(counting)
        for point in map(normal, itertools.product(*AXES.values())):
            ours = composer.load_sweep_config(master, point)
            theirs = hydra.config_loader.load_sweep_config(master, point)
            for resolve in (False, True):
                plain = [OmegaConf.to_container(each, resolve=resolve) for each in (ours, theirs)]
                assert plain[0] == plain[1]
    assert counting.asked == 2 * 2  # method × transforms


def test_what_a_caller_writes_into_a_point_is_in_no_other() -> None:
    with hydra_app([]) as hydra:
        master = hydra.compose_config(CONFIG_NAME, ["hydra.mode=MULTIRUN"], RunMode.MULTIRUN)
        composer = Composer(hydra.config_loader)
        composer.load_sweep_config(master, ["bits=3"]).model.path = "mine"
        assert composer.load_sweep_config(master, ["bits=3"]).model.path != "mine"


def test_a_value_of_no_key_is_hydras_error() -> None:
    with hydra_app([]) as hydra:
        master = hydra.compose_config(CONFIG_NAME, ["hydra.mode=MULTIRUN"], RunMode.MULTIRUN)
        with pytest.raises(HydraException, match="Could not override 'bitz'"):
            Composer(hydra.config_loader).load_sweep_config(master, ["bitz=3"])
