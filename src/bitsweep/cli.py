"""The door: ``bitsweep <verb>``. Finds the verb, and turns mistakes into one line and a code.

Exit codes: 0 fine (refused points are), 2 a mistake of the user's, 3 a point failed, 130 stopped.
Nothing heavy is imported before a verb needs it: ``--help`` takes a fraction of a second.
"""

from __future__ import annotations

import gc
import importlib
import os
import shlex
import signal
import sys
from collections.abc import Sequence

from bitsweep.compose import nearest
from bitsweep.errors import UserError, refused_by_machine

VERBS = {
    "run": ("launch", "measure one point; run -m sweeps several values"),
    "sweep": ("launch", "measure every point of experiments/NAME.yaml that is missing"),
    "plan": ("plan", "list what a sweep would launch, and what it costs; runs nothing"),
    "report": ("look", "tables, fronts and a page from Records"),
    "paper": ("paper", "every table and figure of a paper, as experiments/*.yaml say; --check"),
    "publish": ("publish", "the Records as runs of W&B, MLflow or TensorBoard, each once"),
    "recommend": ("recommend", "the best points under limits of size, quality, speed and memory"),
    "show": ("look", "one Record: its numbers, its plan by layer, some of its texts"),
    "export": ("export", "a point as files that transformers, vLLM, onnxruntime, OpenVINO load"),
    "list": ("look", "methods, formats, policies, models, probes, experiments ..."),
    "doctor": ("doctor", "versions, devices, kernels, tracker, disk, caches"),
}
READERS = ("report", "paper", "publish", "recommend", "show")
"""Of Records: they take no ``results_dir=``, which a sweep does, but ``--results-dir``."""
OK, MISTAKE, FAILED, STOPPED = 0, 2, 3, 130


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script. What a batch system sends at its limit is a ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    code = dispatch(list(sys.argv[1:] if argv is None else argv))
    gc.freeze()  # Python's last collections would look through all of torch: a second
    sys.exit(code)


def dispatch(argv: list[str]) -> int:
    """Run the verb that ``argv`` starts with; returns the exit code."""
    try:
        return _verb(argv)
    except UserError as mistake:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"bitsweep: {mistake}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return STOPPED
    except BrokenPipeError:  # `bitsweep list methods | head`
        sys.stderr.close()
        return OK
    except OSError as error:
        line = refused_by_machine(error)
        if line is None or os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"bitsweep: {line}", file=sys.stderr)
        return MISTAKE


def _verb(argv: list[str]) -> int:
    from bitsweep.commands import helptext

    if not argv or argv[0] in ("-h", "--help", "help"):
        print(helptext.top())
        return OK if argv else MISTAKE
    if argv[0] == "--version":
        from bitsweep import __version__

        print(f"bitsweep {__version__}")
        return OK
    if argv[0] in ("-sc", "--shell-completion"):
        from bitsweep.commands import complete

        return complete.answer(argv[1:])
    verb, rest = argv[0], argv[1:]
    if verb.startswith("-") or "=" in verb:
        raise UserError(f"{verb}: a verb comes first; write bitsweep run {shlex.join(argv)}")
    if verb not in VERBS:
        raise UserError(f"{verb}: no such verb{nearest(verb, VERBS)}; see bitsweep --help")
    if any(item in ("-h", "--help") for item in rest):
        print(helptext.of(verb))
        return OK
    for word in rest if verb in READERS else ():
        if word.startswith("results_dir="):
            place = shlex.quote(word.partition("=")[2])
            raise UserError(f"{word}: {verb} has no such key; write --results-dir {place}")
    module = importlib.import_module(f"bitsweep.commands.{VERBS[verb][0]}")
    code: int = getattr(module, verb if verb != "list" else "list_")(rest)
    return code
