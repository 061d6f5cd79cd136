"""What ``--help`` prints: the verbs, and the axes with their choices, read from ``conf`` itself."""

from __future__ import annotations

import textwrap
from typing import Any

import yaml

from bitsweep.axes import AXES, GROUPS, axis_choices
from bitsweep.cli import VERBS
from bitsweep.compose import conf_dir, experiments, group_files
from bitsweep.typed import show

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
guessed from earlier Records. Runs nothing, writes nothing.
--config-dir FOLDER   groups of your own, beside ours""",
    "report": """\
bitsweep report NAME [NAME ...] [--results-dir FOLDER]

Tables (Markdown, CSV, LaTeX), fronts and heat map (PDF, PNG) and a page into results/NAME; several
names together into results/NAME+NAME. From the Records alone: no model, no network.""",
    "paper": """\
bitsweep paper [--check] [--rerun] [--no-pdf] [--results-dir FOLDER] [--out FOLDER]

What each experiments/NAME.yaml says under `paper:` (docs/paper.md) as LaTeX, Markdown, CSV and PDF
into paper/, and all reports anew, from the Records alone; tables.pdf where there is a pdflatex.
--check   write nothing; exit code 2 and a line for each file that is not what the Records give
--rerun   first sweep what is missing, experiment by experiment in the paper's order
--no-pdf  no LaTeX""",
    "publish": """\
bitsweep publish NAME [tracker=wandb|mlflow|tensorboard|[wandb,mlflow]] [tracker.KEY=VALUE ...]
                 [--artifact FOLDER] [--workspace] [--dry-run] [--again] [--results-dir FOLDER]

  bitsweep publish demo tracker.project=mine tracker.mode=offline
  bitsweep publish demo --artifact exports/rtn-w4g128-1a2b3c4d-gptq

A run for each Record and one for the report, from the Records alone. results/NAME/published.jsonl
says what is where: a repeated publish adds what is missing or changed, each run once.
--artifact FOLDER   a checkpoint that `bitsweep export` made, or a folder of them, by reference: its
                    path on this machine is told then, its weights stay
--workspace         the view of W&B as code: applied when logged in, else a file to apply later
--dry-run           what would be published; writes nothing
--again             every run anew under its next id, as after runs were deleted in W&B
--config-dir FOLDER groups of your own, beside ours""",
    "recommend": """\
bitsweep recommend NAME [NAME ...] [LIMITS] [--best WHAT] [--top 3] [--json] [--results-dir FOLDER]

  bitsweep recommend demo --max-bytes 0.4x --keep 0.99
  bitsweep recommend demo latency --max-drop bleu=1,rougeL=1 --min-speedup 1.5
  bitsweep recommend demo --preset articles

Limits, all of which must hold (none at all: --keep 0.99):
--max-bytes SIZE      of the file: 3.5GiB, 900MB, or 0.5x of full precision's
--max-memory SIZE     measured peak of decoding, or 0.5x of bf16's; where it was not measured, the
                      bytes of the weights, or 0.5x of the whole model in 16 bits
--keep SHARE          of full precision's quality: ppl_fp / ppl, or score / score_fp, at least 0.9
--metric NAME[,NAME]  what --keep is about: ppl/text, or a kind (bleu: each of its tasks); without
                      it the perplexity of the fronts
--max-drop M=N[,M=N]  BLEU, ROUGE, accuracy at most N points (of 100) lower; ppl=5%; kl_mean=0.05
--min-speedup N       decode against bf16, of a packed engine; what was not timed can not pass
--preset NAME|FILE    articles (BLEU and ROUGE-L at most 2 points lower, decode twice as fast,
                      memory half), articles-strict (1 point); or a YAML with drop, keep, speedup,
                      memory, file. An option overrides the preset's limit
--sure                only points whose whole 95 % intervals are within the limits

--best size|quality|speed|memory   what ranks those that pass. Without it: the smallest file where
                      quality is limited, else the best quality, else the fastest
--model, --method NAME[,NAME], --where COLUMN=VALUE[,VALUE]   only these points
--top N, --json       how many points are shown; the same answer for a script

Exit code 0 where a point passes, 1 where none does, 2 for mistakes. More: docs/recommend.md""",
    "show": """\
bitsweep show RUN_ID [--texts N] [--results-dir FOLDER]

The beginning of a run_id or point_id is enough. --texts: how many of each task, 3 unless told.""",
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
    "scale_dtype": "float16, float32, power_of_two; nvfp4 has its own",
    "seed": "of everything that is drawn",
}


def top() -> str:
    """The first page."""
    verbs = "\n".join(f"  {verb:<11}{text}" for verb, (_, text) in VERBS.items())
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
