"""lm-eval tasks by name: those over our own files, and the harness's.

A task whose YAML lies in ``data.tasks_dir`` or in ``conf/tasks`` is local: lm-eval reads the YAML,
and the rows come from ``dataset_kwargs.data_files``, JSON lines in ``data.tasks_dir`` or
``pkg:reference/questions``. They are handed over as they are, past the cache of ``datasets``. Any
other name is one of lm-eval's own tasks, which need a network once.
"""

from __future__ import annotations

import contextlib
import io
import logging
import random
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bitsweep.artifacts import Artifacts, digest, file_digest
from bitsweep.compose import conf_dir
from bitsweep.data import Data
from bitsweep.data.places import PACKAGE, Keys, Place, table_rows
from bitsweep.errors import UserError

Rows = list[Mapping[str, Any]]


def local_yaml(name: str, data: Data) -> Path | None:
    """The YAML of a local task, the user's own first; None for one of lm-eval's."""
    for folder in _folders(data):
        path = folder / f"{name}.yaml"
        if path.is_file():
            return path
    return None


def check(data: Data) -> None:
    """Raise UserError for a local task whose file is not there; reads only YAML."""
    for name in data.questions:
        path = local_yaml(name, data)
        if path is not None:
            for file in _files(path).values():
                _located(name, file, data)


def identity(name: str, data: Data, artifacts: Artifacts) -> dict[str, Any]:
    """What decides a task: its YAML and rows, or that it is lm-eval's; imports no lm-eval."""
    found: dict[str, Any] = {"task": name, "lm_eval": version("lm-eval")}
    path = local_yaml(name, data)
    if path is not None:
        found["yaml"] = file_digest(path)
        found["rows"] = digest(local_rows(name, path, data, artifacts))
    return found


def local_rows(name: str, path: Path, data: Data, artifacts: Artifacts) -> dict[str, Rows]:
    """The rows of a local task by split.

    Raises:
        UserError: the file is missing, or lies in a ``data.tasks_dir`` that is not given.
    """
    count = (_yaml(path).get("metadata") or {}).get("rows")
    keys = Keys(f"{path}: metadata", f"{path}: data_files")
    return {
        split: table_rows(Place(name, _located(name, file, data), keys), count, artifacts)
        for split, file in _files(path).items()
    }


def load(data: Data, artifacts: Artifacts) -> dict[str, Any]:
    """lm-eval Task objects by name, built once a process.

    Raises:
        UserError: an unknown name, or a task of lm-eval whose data set can not be reached.
    """
    key = {"questions": [identity(name, data, artifacts) for name in data.questions]}
    return artifacts.remember("lm_eval_tasks", key, lambda: _build(data, artifacts))


def _build(data: Data, artifacts: Artifacts) -> dict[str, Any]:
    import datasets
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    datasets.disable_progress_bars()
    paths = {name: local_yaml(name, data) for name in data.questions}
    specs: list[Any] = []
    for name, path in paths.items():
        if path is None or not _files(path):
            specs.append(name)
            continue
        rows = local_rows(name, path, data, artifacts)
        config = load_yaml(path, resolve_func=True)
        specs.append({**config, "custom_dataset": _dataset(rows)})
    with quiet():
        manager = TaskManager(
            include_path=[str(folder) for folder in _folders(data)],
            include_defaults=any(path is None for path in paths.values()),
        )
        for name in paths:
            if name not in manager.task_index:
                raise UserError(
                    f"data.questions={name}: neither a YAML in conf/tasks or data.tasks_dir nor a "
                    "task of lm-eval; `lm_eval ls tasks` lists those"
                )
        try:
            tasks: dict[str, Any] = manager.load(specs)["tasks"]
        except UserError:
            raise
        except Exception as error:
            lines = str(error).splitlines() or [""]
            raise UserError(
                f"data.questions={','.join(paths)}: a task does not load "
                f"({type(error).__name__}: {lines[0][:160]}); lm-eval's own need a network once"
            ) from error
    for task in tasks.values():
        if task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", 0)
        task.set_fewshot_seed(seed=1234)  # as lm_eval.simple_evaluate does
    return tasks


def _dataset(rows: Mapping[str, Rows]) -> Callable[..., Any]:
    """What lm-eval calls in place of ``datasets.load_dataset``."""

    def load(**_: Any) -> Any:
        from datasets import Dataset, DatasetDict

        return DatasetDict({split: Dataset.from_list(list(each)) for split, each in rows.items()})

    return load


def _folders(data: Data) -> list[Path]:
    own = [] if data.tasks_dir is None else [Path(data.tasks_dir)]
    return [*own, conf_dir() / "tasks"]


def _located(name: str, file: str, data: Data) -> str:
    if file.startswith(PACKAGE) or Path(file).is_absolute():
        return file
    if data.tasks_dir is None:
        raise UserError(
            f"data.tasks_dir=null: the task {name} reads {file}; give the folder that holds it"
        )
    path = Path(data.tasks_dir) / file
    if not path.is_file():
        raise UserError(f"data.tasks_dir={data.tasks_dir}: no {file} in it for the task {name}")
    return str(path)


def _files(path: Path) -> dict[str, str]:
    files: dict[str, str] = (_yaml(path).get("dataset_kwargs") or {}).get("data_files") or {}
    return files


def _yaml(path: Path) -> dict[str, Any]:
    import yaml

    class Loader(yaml.SafeLoader):
        """Functions that a task's YAML names are lm-eval's business."""

    Loader.add_multi_constructor("!", lambda loader, suffix, node: None)
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not a YAML file ({str(error).splitlines()[0]})") from error
    return value if isinstance(value, dict) else {}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, no lines of lm-eval's log, and every random state as it was before."""
    import numpy as np
    import torch

    loggers = [logging.getLogger(name) for name in ("lm_eval", "transformers")]
    levels = [logger.level for logger in loggers]
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
