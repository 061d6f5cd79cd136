"""The paper: what each experiment's file says under ``paper:``, from the Records alone.

``language`` reads it, ``select`` and ``pivot`` compute, ``words``, ``plot`` and ``document`` draw,
``build`` writes all of it or compares, ``typeset`` asks LaTeX.
"""
