"""Hydra, in one place: where the YAML lies, how it is composed, and its errors in one line.

Nothing here knows what a key means (``config.py`` does), and nothing imports torch.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitsweep.axes import CHAINS, GROUPS
from bitsweep.errors import UserError

if TYPE_CHECKING:
    from hydra._internal.hydra import Hydra
    from omegaconf import DictConfig

CONFIG_NAME = "config"
EXPERIMENTS = "experiments"
MERGED = f"+{EXPERIMENTS}@_global_="
"""How Hydra is told to merge an experiment at the top, without a header in the file.

Hydra reads ``# @package _global_`` on a file's first line only, which is where the question stands.
"""
LISTED = (*CHAINS, "probes", "tracker")
"""Groups of which several can be chosen."""
WORD = re.compile(r"^(?!null$|true$|false$).*(?:[^\W\d_]|[\[{$])", re.IGNORECASE)
"""What can be a choice: no number, and not nothing."""


def conf_dir() -> Path:
    """The folder of ``config.yaml``: ``$BITSWEEP_CONF``, the checkout's, or the wheel's copy.

    Raises:
        UserError: ``$BITSWEEP_CONF`` names a folder without a config.yaml.
    """
    own = os.environ.get("BITSWEEP_CONF")
    if own:
        if not (Path(own) / "config.yaml").is_file():
            raise UserError(f"BITSWEEP_CONF={own}: has no config.yaml; unset it or name our conf/")
        return Path(own).resolve()
    return shipped("conf", "config.yaml")


def shipped(folder: str, witness: str = "") -> Path:
    """A top-level folder of the repository: beside ``src`` in a checkout, inside a wheel's package.

    A checkout is told by its pyproject.toml, so that site-packages' neighbours are never taken.
    """
    package = Path(__file__).resolve().parent
    checkout = package.parents[1]
    if (checkout / "pyproject.toml").is_file() and (checkout / folder / witness).exists():
        return checkout / folder
    return package / folder


def experiment_root(name: str) -> Path:
    """The folder that has ``experiments/<name>.yaml``: the working directory, else the package.

    Raises:
        UserError: neither has it; names the nearest.
    """
    roots = [Path.cwd(), shipped(EXPERIMENTS).parent]
    for root in roots:
        if (root / EXPERIMENTS / f"{name}.yaml").is_file():
            return root
    known = sorted(experiments())
    guess = nearest(Path(name).stem, known)  # for those who type the file
    own = f"; one of your own is {EXPERIMENTS}/NAME.yaml of this folder"
    raise UserError(f"{name}: no such experiment{guess}{choices(known)}{own}")


def experiments() -> dict[str, Path]:
    """Every experiment file by name; one in the working directory hides the package's."""
    found: dict[str, Path] = {}
    for root in (shipped(EXPERIMENTS), Path.cwd() / EXPERIMENTS):
        found |= {path.stem: path for path in sorted(root.glob("*.yaml")) if path.is_file()}
    return found


def group_files(group: str) -> dict[str, Path]:
    """The YAML files of one config group, by choice; ``shape/NAME`` for one in a folder of it."""
    return choices_in(conf_dir() / group)


def choices_in(folder: Path) -> dict[str, Path]:
    """The YAML files in and below ``folder``, by their path from it without the suffix."""
    found = {
        path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob("*.yaml")
    }
    return dict(sorted(found.items(), key=lambda item: ("/" in item[0], item[0])))


def nearest(name: str, known: Iterable[str]) -> str:
    """``; did you mean bits?``, or nothing where nothing is near."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def choices(known: Sequence[str]) -> str:
    return f" (choices: {', '.join(known)})" if known else ""


@contextmanager
def hydra_app(overrides: Sequence[str], extra_dir: str | None = None) -> Iterator[Hydra]:
    """Hydra's application over our ``conf``; Hydra's global state is put back afterwards.

    An experiment among the ``overrides`` (as :func:`normal` writes it) adds the folder in which
    it lies. ``extra_dir`` (``--config-dir``) is a folder of the user's own groups, which add
    choices and hide none of ours.
    Built by hand instead of by ``hydra.main``, whose way with errors is a traceback.
    """
    from hydra import version
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.core.config_search_path import SearchPathQuery
    from hydra.core.global_hydra import GlobalHydra

    version.setbase("1.3")
    path = create_config_search_path(str(conf_dir()))
    if extra_dir is not None:
        if not Path(extra_dir).is_dir():
            raise UserError(f"--config-dir {extra_dir}: no such folder")
        place = f"file://{Path(extra_dir).resolve()}"
        path.prepend("command-line", place, anchor=SearchPathQuery(provider="schema"))
    for override in overrides:
        if override.startswith(MERGED):
            place = f"file://{experiment_root(override.removeprefix(MERGED))}"
            path.prepend(EXPERIMENTS, place, anchor=SearchPathQuery(provider="schema"))
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield Hydra.create_main_hydra2(task_name="bitsweep", config_search_path=path)
    except _ChoiceError as error:
        if extra_dir is None:
            raise UserError(f"{error}; {_own_folder(error.wanted)}") from error
        raise
    finally:
        GlobalHydra.instance().clear()
        if before is not None:
            GlobalHydra.instance().initialize(before)


def experiment_overrides(name: str) -> list[str]:
    """What ``bitsweep sweep NAME`` puts before the user's overrides."""
    experiment_root(name)
    return [f"+{EXPERIMENTS}={name}", f"experiment={name}"]


def normal(overrides: Sequence[str]) -> list[str]:
    """The overrides as Hydra wants them: ``+experiments=NAME`` is merged at the top.

    Raises:
        UserError: see :func:`check_choices`.
    """
    check_choices(overrides)
    short = f"+{EXPERIMENTS}="
    return [
        MERGED + item.removeprefix(short) if item.startswith(short) else item for item in overrides
    ]


def check_choices(overrides: Iterable[str]) -> None:
    """What Hydra has no message for: groups left out, and choices that can be none.

    Raises:
        UserError: names the override, and what it takes.
    """
    for override in overrides:
        key, _, choice = override.partition("=")
        group = key.removeprefix("~")
        listed = choice.startswith("[") and group not in LISTED
        if group in GROUPS and (key != group or listed or not WORD.search(choice)):
            raise UserError(f"{override}: takes one of {', '.join(group_files(group))}")
        if not key:
            raise UserError(f"{override}: not an override; write key=value")


def typed(overrides: Sequence[str]) -> list[str]:
    """The overrides as a user types them: :func:`normal` undone, without Hydra's own keys."""
    short = f"+{EXPERIMENTS}="
    return [
        short + item.removeprefix(MERGED) if item.startswith(MERGED) else item
        for item in overrides
        if not item.startswith("hydra")
    ]


def compose(overrides: Sequence[str], extra_dir: str | None = None) -> DictConfig:
    """One point's configuration, with Hydra's own node (``hydra.runtime.choices``) in it."""
    from hydra.types import RunMode

    overrides = normal(overrides)
    with hydra_app(overrides, extra_dir) as hydra, one_line_errors():
        return hydra.config_loader.load_configuration(
            config_name=CONFIG_NAME, overrides=overrides, run_mode=RunMode.RUN
        )


def plain_config(config: DictConfig) -> tuple[dict[str, Any], dict[str, str]]:
    """A composed configuration as plain values, and which choice each group took."""
    from omegaconf import DictConfig, OmegaConf

    with one_line_errors():
        taken = OmegaConf.to_container(config.hydra.runtime.choices)
        bare = DictConfig({k: v for k, v in config.items_ex(resolve=False) if k != "hydra"})
        values = OmegaConf.to_container(bare, resolve=True)
    assert isinstance(values, dict)
    assert isinstance(taken, dict)
    for missing in _missing(values):
        raise UserError(f"{missing}: must be given; write {missing}=VALUE")
    return {str(k): v for k, v in values.items()}, {str(k): str(v) for k, v in taken.items()}


def _missing(values: Any, where: str = "") -> Iterator[str]:
    """Keys whose YAML says ``???``: a value that only the user knows."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield from _missing(value, f"{where}.{key}" if where else str(key))
    elif values == "???":
        yield where


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what Hydra, OmegaConf, PyYAML and wrong bytes raise into a UserError of one line."""
    import yaml
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise _mistake(error) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{_not_utf8()}: is not UTF-8 ({error.reason}); convert it") from error


class _ChoiceError(UserError):
    """A group has no such file; a folder of the user's own (``--config-dir``) may have it."""

    def __init__(self, line: str, wanted: str) -> None:
        super().__init__(line)
        self.wanted = wanted


def _mistake(error: Exception) -> UserError:
    from hydra.errors import MissingConfigException

    from bitsweep.mistakes import explain

    wanted = error.missing_cfg_file if isinstance(error, MissingConfigException) else None
    if wanted and wanted.partition("/")[0] in GROUPS and not is_checkpoint(wanted):
        return _ChoiceError(explain(error), wanted)
    return UserError(explain(error))


def is_checkpoint(wanted: str) -> bool:
    """Whether what was ``wanted`` of a group is a model's folder or hub id: model/./my_model."""
    group, _, choice = wanted.partition("/")
    own = "/" in choice and not choice.startswith("shape/")
    return group == "model" and (own or Path(choice).is_dir())


def _own_folder(wanted: str) -> str:
    """Where a choice of the user's own could be: a folder here that has it, else any."""
    here = [Path(), *(path for path in sorted(Path().iterdir()) if path.is_dir())]
    for folder in here:
        if (folder / f"{wanted}.yaml").is_file():
            return f"{folder / wanted}.yaml is there: add --config-dir {folder}"
    return "a folder of your own: --config-dir FOLDER"


def _not_utf8() -> str:
    """The experiment whose bytes are no text; the decoder does not say which file it read."""
    for path in experiments().values():
        try:
            path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            return str(path)
    return "a YAML file of --config-dir"
