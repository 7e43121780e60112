"""A trajectory as one line of a file that leaves this package: with the version of the format.

The stages of a run have no such field: their bytes, and the hashes of them, stay as they are.
"""

from __future__ import annotations

import json

from eef.trajectory import VERSION, Trajectory, check, to_dict


def line_of(trajectory: Trajectory) -> str:
    """One line of JSON with the field ``version``, which :func:`eef.trajectory.from_dict` checks.

    :class:`eef.trajectory.TrajectoryError` for a trajectory that :func:`eef.trajectory.load` would refuse.
    """
    check(trajectory)
    return json.dumps({**to_dict(trajectory), "version": VERSION}) + "\n"
