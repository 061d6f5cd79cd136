"""Shell completion: ``eval "$(bitsweep -sc install=bash)"``; verbs by us, overrides by Hydra."""

from __future__ import annotations

import os
from collections.abc import Sequence

from bitsweep.axes import GROUPS
from bitsweep.cli import OK, VERBS
from bitsweep.compose import CONFIG_NAME, experiments, group_files, hydra_app, one_line_errors
from bitsweep.errors import UserError

OVERRIDES = ("run", "sweep", "plan")
NAMES = ("sweep", "plan", "report", "recommend")


def answer(arguments: Sequence[str]) -> int:
    """Do what Hydra's completion script asks: ``install=``, ``uninstall=`` or ``query=SHELL``."""
    if not arguments:
        raise UserError("-sc: takes install=bash, uninstall=bash or query=bash (or zsh, fish)")
    if arguments[0].startswith("query="):
        words = os.environ.get("COMP_LINE", "").split(" ")
        own = _own(words)
        if own is not None:
            print(" ".join(own))
            return OK
        os.environ["COMP_LINE"] = " ".join([words[0], *_behind_verb(words)])
    with hydra_app([]) as hydra, one_line_errors():
        try:
            hydra.shell_completion(config_name=CONFIG_NAME, overrides=list(arguments))
        except ValueError as error:
            raise UserError(f"-sc {' '.join(arguments)}: {error}".replace("\n", " ")) from error
    return OK


def _own(words: Sequence[str]) -> list[str] | None:
    """What we complete ourselves: the verb, and the name behind a verb that takes one."""
    if len(words) <= 2:
        typed = words[1] if len(words) == 2 else ""
        return [verb for verb in VERBS if verb.startswith(typed)]
    verb, last = words[1], words[-1]
    if verb == "list":
        from bitsweep.commands.look import LISTS

        return [name for name in LISTS if name.startswith(last)]
    if verb in NAMES and len(words) == 3 and "=" not in last:
        return [name for name in sorted(experiments()) if name.startswith(last)]
    if verb not in OVERRIDES:
        return []
    group, given, typed = last.partition("=")
    known = group_files(group) if given and group in GROUPS else {}
    if any("/" in name for name in known):  # of which Hydra sees those on top only
        return [f"{group}={name}" for name in known if name.startswith(typed)]
    return None


def _behind_verb(words: Sequence[str]) -> Sequence[str]:
    named = words[1] in NAMES and len(words) > 2 and "=" not in words[2]
    return words[3 if named else 2 :]
