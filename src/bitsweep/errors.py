"""The two ways in which a point can be turned away, and what a machine can refuse."""

from __future__ import annotations

import errno

FULL = {errno.ENOSPC: "free some space", errno.EDQUOT: "free some of your quota"}
PLACE = dict.fromkeys(
    (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
    "look at its rights, or name another place",
)
ADVICE = FULL | PLACE
"""What helps where the machine refuses a file; any other OSError is a mistake of ours."""


def refused_by_machine(error: OSError) -> str | None:
    """One line about a file that can not be read or written, or None for a mistake of ours."""
    advice = ADVICE.get(error.errno or 0)
    if advice is None:
        return None
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror}; {advice}"


class UserError(Exception):
    """A mistake of the user's: one line that names the key, what is wrong and what would work.

    The command line prints it without a traceback and exits with code 2.
    """


class Refused(Exception):  # noqa: N818 - not an error: an answer
    """A point that cannot exist (a format that a method lacks, a group that does not divide).

    It becomes a row with this reason, and never fails a sweep.
    """
