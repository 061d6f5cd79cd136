"""What ``--help`` prints: the verbs, and the axes with their choices, read from ``conf`` itself."""

from __future__ import annotations

import textwrap
from typing import Any

import yaml

from bitsweep.axes import AXES, GROUPS, axis_choices
from bitsweep.cli import VERBS
from bitsweep.compose import conf_dir, experiments, group_files
from bitsweep.strict import show

USAGE = {
    "run": """\
bitsweep run [KEY=VALUE ...]          one point
bitsweep run -m KEY=A,B,C ...         every combination of the values given

  bitsweep run method=gptq bits=3 group_size=32
  bitsweep run model.path=EleutherAI/pythia-70m model.revision=main data=wikitext2
  bitsweep run -m method=rtn,gptq bits=2,3,4 experiment=first_look

-m, --multirun        sweep over the values
--cfg job|hydra|all   print the configuration instead; --resolve fills it in; -p PACKAGE a part
--config-dir FOLDER   groups of your own (FOLDER/method/mine.yaml), beside ours
--info [TOPIC]        Hydra's own account of the configuration (defaults, searchpath ...)""",
    "sweep": """\
bitsweep sweep NAME [KEY=VALUE ...]   experiments/NAME.yaml, here first, then the package's

  bitsweep sweep demo
  bitsweep sweep demo probes=quick method=gptq bits=3,4

A relaunch measures what is missing or failed; force=true measures all again. A value that the
experiment's grids list narrows them; another one replaces theirs.
--config-dir FOLDER   groups of your own, beside ours""",
    "plan": """\
bitsweep plan NAME [KEY=VALUE ...]    the points of an experiment
bitsweep plan KEY=A,B ...             the points of run -m

One line a point: to run, done, refused with the reason, or merged with an equal one; the cost is
guessed from earlier Records. Runs nothing, writes nothing.""",
    "report": """\
bitsweep report NAME [NAME ...] [--results-dir FOLDER]

Tables (Markdown, CSV, LaTeX), fronts and heat map (PDF, PNG) and a page into results/NAME; several
names together into results/NAME+NAME. From the Records alone: no model, no network.""",
    "show": """\
bitsweep show RUN_ID [--results-dir FOLDER]

The beginning of a run_id or point_id is enough.""",
    "export": """\
bitsweep export RUN_ID --to FORMAT [--out FOLDER] [--results-dir FOLDER]
bitsweep export KEY=VALUE ... --to FORMAT [--out FOLDER] [--config-dir FOLDER]

  bitsweep export 1a2b3c4d --to compressed-tensors
  bitsweep export model.path=MODEL method=rtn bits=4 group_size=128 --to gptq --out w4

FORMAT: compressed-tensors, gptq (checkpoints with packed weights), hf-dense (one with floats), onnx
(QDQ), openvino. The beginning of a run_id or point_id is enough; its command is composed and its
weights are quantized again, and it must still be the same point. Without --out the folder is
exports/<label>-<run_id>-<format>. What a format can not hold is refused; no file is written.""",
    "list": """\
bitsweep list methods|formats|transforms|recoveries|inputs|policies|models|data|calibrations
bitsweep list probes|engines|trackers|experiments

--config-dir FOLDER   groups of your own, beside ours""",
    "doctor": """\
bitsweep doctor

Exit code 0 unless something that every run needs is broken.""",
}
AXIS_NOTES = {
    "bits": "per weight, 2 to 8 for int",
    "group_size": "32, 64, 128 ...; -1 per output channel, 0 per tensor",
    "symmetric": "true, false",
    "seed": "of everything that is drawn",
}


def top() -> str:
    """The first page."""
    verbs = "\n".join(f"  {verb:<8}{text}" for verb, (_, text) in VERBS.items())
    return f"""\
bitsweep: which quantization method, at how many bits, in which groups, on which layers?

usage: bitsweep VERB [ARGUMENTS]        bitsweep VERB --help says more

{verbs}

{keys()}

Any key takes several values in a sweep: bitsweep run -m method=rtn,gptq bits=2,3,4
Experiments: {", ".join(sorted(experiments())) or "none yet"}
Completion in bash: eval "$(bitsweep -sc install=bash)"   (or zsh, fish)"""


def of(verb: str) -> str:
    """A verb's page; those that take keys show them."""
    if verb in ("run", "sweep", "plan"):
        return f"{USAGE[verb]}\n\n{keys()}"
    return USAGE[verb]


def keys() -> str:
    """Groups and axes with their default first and their choices."""
    defaults = _defaults()
    lines = ["Groups (KEY=CHOICE, and KEY.option=VALUE for what is in its YAML):"]
    for group in GROUPS:
        lines.append(_line(group, defaults.get(group), ", ".join(group_files(group))))
    lines.append("Axes:")
    known = axis_choices()
    for axis in AXES:
        note = AXIS_NOTES.get(axis) or ", ".join(known.get(axis, ()))
        lines.append(_line(axis, defaults.get(axis), note))
    lines.append("Of a run:")
    for key, note in (
        ("experiment", "Records go to <results_dir>/<experiment>"),
        ("results_dir", "below the working directory"),
        ("force", "true measures again what is there"),
        ("threads", "of torch"),
        ("plugins", "packages whose classes _target_ may name"),
    ):
        lines.append(_line(key, defaults.get(key), note))
    return "\n".join(lines)


def _line(key: str, default: Any, note: str) -> str:
    shown = show(default)
    head = f"  {key + '=' + shown:<26}"
    return textwrap.fill(note or "none yet", 100, initial_indent=head, subsequent_indent=" " * 28)


def _defaults() -> dict[str, Any]:
    config = yaml.safe_load((conf_dir() / "config.yaml").read_text(encoding="utf-8"))
    choices: dict[str, Any] = {}
    for item in config.pop("defaults"):
        if isinstance(item, dict):
            choices |= {k: v for k, v in item.items() if not k.startswith("override ")}
    return config | choices
