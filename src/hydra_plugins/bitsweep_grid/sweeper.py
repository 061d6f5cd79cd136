"""``hydra/sweeper: grid``: expands grids, lets the session choose, launches what is left.

Every Hydra application in the environment imports this file, so it imports nothing heavy. Hydra
does so without entering it in ``sys.modules``, which dataclasses with string annotations do not
survive.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class GridSweeperConf:
    """Needs no options: the grids stand in the experiment."""

    _target_: str = "hydra_plugins.bitsweep_grid.sweeper.GridSweeper"


ConfigStore.instance().store(
    group="hydra/sweeper", name="grid", node=GridSweeperConf, provider="bitsweep"
)


class Remembering:
    """Hydra's config loader, composing no point twice: the session asks first, the launcher then.

    Composing is most of what a point costs outside its measuring.
    """

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.composed: dict[tuple[str, ...], DictConfig] = {}

    def load_sweep_config(self, master: DictConfig, overrides: list[str]) -> DictConfig:
        """Compose, or give away what was composed: a launcher writes its job number into it."""
        known = self.composed.pop(tuple(overrides), None)
        if known is None:
            known = self.loader.load_sweep_config(master, overrides)
            self.composed[tuple(overrides)] = known
        return known

    def keep(self, chosen: Sequence[Sequence[str]]) -> None:
        """Forget all other points: some launchers send this object to other processes."""
        wanted = {tuple(overrides) for overrides in chosen}
        self.composed = {key: value for key, value in self.composed.items() if key in wanted}

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # while unpickling
            raise AttributeError(name)
        return getattr(self.loader, name)


class GridSweeper(Sweeper):
    """Asks the task (a ``bitsweep.sweep.Session``) which points to launch; any launcher does it."""

    def __init__(self) -> None:
        self.loader: Remembering | None = None
        self.config: DictConfig | None = None
        self.session: Any = None
        self.launcher: Launcher | None = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.loader = Remembering(hydra_context.config_loader)
        self.config, self.session = config, task_function
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=HydraContext(self.loader, hydra_context.callbacks),
            task_function=task_function,
            config=config,
        )

    def sweep(self, arguments: list[str]) -> Sequence[JobReturn]:
        """Launch the points that are valid, not equal to another, and not done."""
        assert self.loader is not None
        assert self.launcher is not None
        chosen = self.session.choose(self.loader, self.config, arguments)
        self.loader.keep(chosen)
        if not chosen:
            return []
        returns = self.launcher.launch(chosen, initial_job_idx=0)
        self.session.finish([job.return_value for job in returns])
        return returns
