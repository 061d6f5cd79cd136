"""``export``: a point, from its Record or from its keys, becomes files that other runtimes load."""

from __future__ import annotations

import argparse
import functools
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitsweep import cli
from bitsweep.commands.launch import Parser, parser
from bitsweep.commands.look import lookup, stores
from bitsweep.compose import choices, compose, nearest
from bitsweep.config import Job, check, command_line, job
from bitsweep.errors import Refused, UserError
from bitsweep.grid import literal
from bitsweep.record import Record

if TYPE_CHECKING:
    from bitsweep.artifacts import Artifacts
    from bitsweep.export.folder import Origin, Written
    from bitsweep.prepared import Prepared

MIB = 2**20
PARTS = {
    "quantized": "quantized layers (shapes, whole words)",
    "kept": "tensors that a transform changed, which the checkpoint's dtype can not hold",
    "names": "names in the headers",
}
"""What a file may have beyond the bytes that were predicted."""


def export(argv: list[str]) -> int:
    """``bitsweep export RUN_ID --to FORMAT``, or ``bitsweep export KEY=VALUE ... --to FORMAT``."""
    flags = Parser(prog="bitsweep export", add_help=False, allow_abbrev=False)
    flags.add_argument("what", nargs="*")
    flags.add_argument("--to", default="")
    flags.add_argument("--out", type=Path)
    flags.add_argument("--results-dir", type=Path, default=Path("results"))
    flags.add_argument("--config-dir", "-cd")
    given = flags.parse_intermixed_args(argv)
    check_format(given.to)
    if not given.what:
        raise UserError("export: takes a RUN_ID, or the KEY=VALUE of a point; see --help")
    from bitsweep.artifacts import Artifacts, cache_root

    artifacts = Artifacts(cache_root())
    if len(given.what) == 1 and "=" not in given.what[0]:
        records = find(given.what[0], given.results_dir)
        typed = _typed(records[0])
        keys, config_dir = typed.overrides, given.config_dir or typed.config_dir
        wanted, prepared = again(records[0], artifacts, given.config_dir)
    else:
        records, keys, config_dir = [], given.what, given.config_dir
        wanted = job(compose(keys, config_dir), command_line("export", argv))
        prepared = _prepared(wanted, artifacts)
        from bitsweep.survey import unchosen_text

        line = unchosen_text([wanted.point], measured=False)
        if line is not None:
            print(line, file=sys.stderr)
    from bitsweep.export.folder import Origin

    label = str(prepared.columns()["label"])
    origin = Origin(wanted.point.command, prepared.point_id, label, tuple(records))
    out = given.out or default_folder(prepared, given.to)
    written = _write(wanted, prepared, artifacts, given.to, out, origin)
    _tell(written)
    if written.readable:
        words = [f"model.path={written.folder}", "method=full_precision"]
        words += [
            *measures(keys, config_dir),
            *(["--config-dir", config_dir] if config_dir else []),
        ]
        print(f"load    {written.folder}/README.md says how transformers opens it")
        print(f"next    {shlex.join(['bitsweep', 'run', *words])}")
    else:
        print(f"next    {written.folder}/README.md says how to load it")
    return cli.OK


def check_format(name: str) -> None:
    """Raises UserError for a ``--to`` that is no format of ours."""
    from bitsweep.export import names

    known = names()
    if not name:
        raise UserError(f"--to: takes one of {', '.join(known)}")
    if name not in known:
        raise UserError(f"--to {name}: no such format{nearest(name, known)}{choices(known)}")


def find(run_id: str, results: Path) -> list[Record]:
    """The Records of the one point whose run_id or point_id begins so: those of its quality first,
    of several the one that was asked for, then the one with most numbers.
    """
    found = {record.run_id: record for _, record in lookup("export", run_id, results)}
    points = {record.point_id for record in found.values()}
    if len(points) > 1:
        raise UserError(f"export {run_id}: is the beginning of {len(points)} points; give more")
    siblings = {
        record.run_id: record
        for store in stores(results)
        for record in store.records()
        if record.point_id in points and record.status == "ok"
    }
    first = next(iter(found.values()))
    if first.status != "ok":
        raise UserError(f"export {run_id}: this point was {first.status}: {first.reason}")
    return sorted(
        siblings.values(),
        key=lambda record: (
            record.kind,
            record.run_id not in found,
            -len(record.metrics),
            record.run_id,
        ),
    )


def again(
    record: Record, artifacts: Artifacts, config_dir: str | None = None
) -> tuple[Job, Prepared]:
    """The point of ``record``, composed anew from its command.

    ``config_dir``: where the user's own groups are now, if not where the command says.

    Raises:
        UserError: it has become another point meanwhile; says what of it.
    """
    import torch

    given, command = _typed(record), str(record.provenance["command"])
    wanted = job(compose(given.overrides, config_dir or given.config_dir), command)
    torch.set_num_threads(int(record.provenance.get("threads", torch.get_num_threads())))
    prepared = _prepared(wanted, artifacts)
    if prepared.point_id != record.point_id:
        raise UserError(
            f"export {record.run_id[:12]}: {_changed(record, prepared, artifacts)}, so this is "
            f"another point; measure it again: {command}"
        )
    return wanted, prepared


def _typed(record: Record) -> argparse.Namespace:
    """The overrides and the ``--config-dir`` of a Record's command."""
    command = str(record.provenance.get("command", ""))
    words = shlex.split(command)
    if words[:2] != ["bitsweep", "run"]:
        raise UserError(
            f"export {record.run_id[:12]}: its command is {command!r}, which is no bitsweep run; "
            "give its KEY=VALUE in place of the id"
        )
    return parser("run").parse_intermixed_args(words[2:])


def measures(keys: Sequence[str], config_dir: str | None) -> list[str]:
    """Overrides that measure another checkpoint as ``keys`` measure theirs: data and probes.

    Whatever chose them (the keys, an experiment's file), what differs from the defaults is here.
    """
    from omegaconf import OmegaConf

    wanted, plain = compose(keys, config_dir), compose([], config_dir)
    groups, taken = ("data", "probes"), wanted.hydra.runtime.choices
    found = [f"{g}={taken[g]}" for g in groups if taken[g] != plain.hydra.runtime.choices[g]]
    plain = compose(found, config_dir)
    for group in groups:
        was, now = (OmegaConf.to_container(each[group], resolve=False) for each in (plain, wanted))
        found += _changes(group, was, now)
    return found


def _changes(key: str, was: Any, now: Any) -> Iterator[str]:
    if not isinstance(was, Mapping) or not isinstance(now, Mapping):
        if was != now:
            yield f"{key}={literal(now)}"
        return
    for name in dict.fromkeys([*was, *now]):
        if name not in now:
            yield f"~{key}.{name}"
        elif name not in was:
            yield f"+{key}.{name}={literal(now[name])}"
        else:
            yield from _changes(f"{key}.{name}", was[name], now[name])


def _prepared(wanted: Job, artifacts: Artifacts) -> Prepared:
    from bitsweep.prepared import prepare

    check(wanted, artifacts)
    try:
        return prepare(wanted.point, artifacts)
    except Refused as reason:
        raise UserError(str(reason)) from reason


def _changed(record: Record, prepared: Prepared, artifacts: Artifacts) -> str:
    """What of a point is no longer what its Record says."""
    from bitsweep import models

    now = prepared.point.columns()
    then = record.point
    axes = [key for key in then if key != "label" and then[key] != now.get(key)]
    if axes:
        shown = ", ".join(f"{key} was {then[key]} and is {now.get(key)}" for key in axes)
        return f"with its command {shown}"
    if models.skeleton(prepared.source, artifacts).checkpoint != record.model.get("sha256"):
        return f"the checkpoint at {prepared.source.path} has changed"
    if prepared.plan.digest() != record.plan.get("digest"):
        return f"policy={now['policy']} has changed"
    commit = str(record.provenance.get("commit"))[:12]
    return f"its method, transforms or calibration changed since commit {commit}"


def default_folder(prepared: Prepared, name: str) -> Path:
    """``exports/gptq-w4g64-1a2b3c4d-compressed-tensors``."""
    label = re.sub(r"[^\w.]+", "-", str(prepared.columns()["label"])).strip("-")
    run_id = next(iter(prepared.run_ids.values()), prepared.point_id)
    return Path("exports") / f"{label}-{run_id[:8]}-{name}"


def _write(
    wanted: Job,
    prepared: Prepared,
    artifacts: Artifacts,
    name: str,
    out: Path,
    origin: Origin,
) -> Written:
    import torch

    from bitsweep.export import containers, contents, folder, streaming
    from bitsweep.export.checkpoint import refuse_taken
    from bitsweep.prepared import reshaped
    from bitsweep.provenance import Stopwatch
    from bitsweep.run import make

    refuse_taken(out)
    if prepared.source.random_weights:
        raise UserError(
            f"export: model={prepared.source.name} has random weights; give a checkpoint"
        )
    if name in containers():  # said before anything is quantized
        from bitsweep import models

        model = reshaped(prepared.point, models.skeleton(prepared.source, artifacts))
        reason = contents.refused(model, containers()[name](), prepared.plan)
        if reason is not None:
            raise UserError(f"--to {name}: {reason}")
    if wanted.threads is not None:
        torch.set_num_threads(wanted.threads)
    if streaming.takes(name) and streaming.refuses(prepared, artifacts) is None:
        empty = streaming.unfilled(prepared, artifacts)
        with _live() as progress:
            pour = functools.partial(streaming.stream, prepared, artifacts, progress)
            return folder.write(empty, name, out, origin, pour=pour)
    made = make(prepared, artifacts, Stopwatch())
    return folder.write(made.model, name, out, origin)


@contextmanager
def _live() -> Iterator[Callable[[str], None]]:
    """A line that changes while tensors are written, on a terminal only."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False, markup=False)
    with console.status("") as status:
        yield status.update


def _tell(written: Written) -> None:
    size = written.size
    line = f"{written.folder}  {written.files} files, weights {size.bytes / MIB:.3f} MiB"
    if not size.parts:
        print(f"{line} (a packed file of this point has {size.predicted / MIB:.3f})")
    else:
        print(f"{line}, {100 * size.off:+.2f} % of the {size.predicted / MIB:.3f} predicted")
    if size.missed:
        why = ", ".join(
            f"{PARTS[name]} {value / 1024:+.1f} KiB" for name, value in size.parts.items() if value
        )
        print(f"SIZE    off by more than 1 %: {why}")
