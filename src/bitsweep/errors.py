"""The two ways in which a point can be turned away."""


class UserError(Exception):
    """A mistake of the user's: one line that names the key, what is wrong and what would work.

    The command line prints it without a traceback and exits with code 2.
    """


class Refused(Exception):  # noqa: N818 - not an error: an answer
    """A point that cannot exist (a format that a method lacks, a group that does not divide).

    It becomes a row with this reason, and never fails a sweep.
    """
