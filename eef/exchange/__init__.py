"""Files for other trainers, and files of others: ``eef export`` and ``eef import``.

:mod:`~eef.exchange.source` finds what a method selected, :mod:`~eef.exchange.conversation` writes it as messages,
:mod:`~eef.exchange.formats` makes the rows of each format, :mod:`~eef.exchange.pairs` finds preference pairs,
:mod:`~eef.exchange.incoming` turns conversations of others into trajectories, and
:mod:`~eef.exchange.replay_check` checks these.
"""
