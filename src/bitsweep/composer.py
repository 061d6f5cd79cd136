"""Composing the points of a sweep: what several have in common is read and merged once."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig


class Composer:
    """Hydra's config loader, for points that differ in few groups and many values.

    Nearly all of composing is reading the files of the groups that were chosen and merging them;
    values are laid on top of that, by Hydra as well. So points that choose alike share a base: of
    1,000 points over 4 methods Hydra composes 4.
    """

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self._bases: dict[tuple[str, ...], DictConfig] = {}

    def load_sweep_config(self, master: DictConfig, overrides: list[str]) -> DictConfig:
        """What ``loader`` would compose, to the last key; the caller's own."""
        from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
        from hydra.core.override_parser.overrides_parser import OverridesParser

        parsed = OverridesParser.create().parse_overrides(overrides)
        choices = [str(override.input_line) for override in parsed if self._chooses(override)]
        values = [override for override in parsed if not self._chooses(override)]
        if tuple(choices) not in self._bases:
            self._bases[tuple(choices)] = self.loader.load_sweep_config(master, choices)
        composed = copy.deepcopy(self._bases[tuple(choices)])
        ConfigLoaderImpl._apply_overrides_to_config(values, composed)
        task = [override for override in parsed if not override.is_hydra_override()]
        composed.hydra.overrides.task = [override.input_line for override in task]
        style = composed.hydra.job.config.override_dirname
        composed.hydra.job.override_dirname = get_overrides_dirname(
            task, style.exclude_keys, style.item_sep, style.kv_sep
        )
        return composed

    def _chooses(self, override: Override) -> bool:
        """Whether Hydra's defaults list depends on it, or its own settings."""
        is_group = self.loader.repository.group_exists(override.key_or_group)
        return override.is_hydra_override() or (is_group and not isinstance(override.value(), dict))

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # while unpickling
            raise AttributeError(name)
        return getattr(self.loader, name)
