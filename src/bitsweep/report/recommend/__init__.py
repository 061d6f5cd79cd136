"""Which points to take, from the Records alone: ``bitsweep recommend``.

A question goes through the rooms in this order:

``limits``      what a user typed becomes an ``Acceptance``, a line of limits
``answer``      of each model: who keeps every limit, who does not and why, what is nearest
``ranking``     the order of those that pass, and which of them are tied
``words``       the sentences about an answer; ``table`` its points in columns; ``as_json`` both
                for scripts
``handoff``     what to type to take the first on; ``exportable`` which format can hold it

They stand on two rooms of ``report/`` that the page looks into as well: ``estimate``, what a row
keeps of full precision, with its interval, and ``acceptance``, which limits it stays within and how
sure that is.
"""
