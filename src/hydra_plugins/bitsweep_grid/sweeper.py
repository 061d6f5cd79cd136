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


class GridSweeper(Sweeper):
    """Asks the task (a ``bitsweep.sweep.Session``) which points to launch; any launcher does it."""

    def __init__(self) -> None:
        self.loader: Any = None
        self.config: DictConfig | None = None
        self.session: Any = None
        self.launcher: Launcher | None = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        from bitsweep.composer import Composer

        self.loader = Composer(hydra_context.config_loader)
        self.config, self.session = config, task_function
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=HydraContext(self.loader, hydra_context.callbacks),
            task_function=task_function,
            config=config,
        )

    def sweep(self, arguments: list[str]) -> Sequence[JobReturn]:
        """Launch the points that are valid, not equal to another, and not done."""
        assert self.launcher is not None
        chosen = self.session.choose(self.loader, self.config, arguments)
        if not chosen:
            return []
        returns = self.launcher.launch(chosen, initial_job_idx=0)
        self.session.finish([job.return_value for job in returns])
        return returns
