"""Labels of points that touch nothing: places for short texts among the lines, markers and dots of a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

_PAD = 1.0  # points between a label and anything else
_STEP = 2.0  # points between two rings of places that are tried
_FAR = 9.0  # points between a label and its point from which a thin line joins them
_ANGLES = np.radians([90, 270, 60, 120, 300, 240, 0, 180, 30, 150, 330, 210])


class Label(NamedTuple):
    """A text for the point (x, y), in data units."""

    text: str
    x: float
    y: float
    colour: str


def place_labels(axes: Any, labels: Sequence[Label], size: float = 6.5) -> list[Any]:
    """Write ``labels`` into ``axes`` and return matplotlib's texts, with the gid ``point label``.

    A label stands as close to its point as it can without touching lines, markers, dots, intervals or other labels; one
    that is far away has a thin line to its point. A label without any free place in the axes is left out. Call it last,
    when the limits of the axes are set. ``size``: of the font, in points.
    """
    from matplotlib.patheffects import withStroke

    renderer = axes.figure.canvas.get_renderer()
    pixels = axes.figure.dpi / 72  # of a point
    frame = axes.get_window_extent(renderer)
    boxes, others = occupied(axes), np.empty((0, 4))  # others: labels, which no joining line may cross
    texts: list[Any] = []
    for label in labels:
        text = axes.annotate(
            label.text, (label.x, label.y), xytext=(0, 0), textcoords="offset points", fontsize=size, weight="bold",
            color=label.colour, ha="center", va="center", zorder=6, gid="point label", annotation_clip=False,
            path_effects=[withStroke(linewidth=1.5, foreground="white")],
        )  # fmt: skip
        own = text.get_window_extent(renderer)
        half = np.array([own.width, own.height]) / 2 + _PAD * pixels
        point = axes.transData.transform((label.x, label.y))
        for centre in _places(point, half, frame, pixels):
            if _touches(np.array([[*(centre - half), *(centre + half)]]), boxes):
                continue
            end = np.clip(point, centre - half, centre + half)  # of the joining line, at the label
            line = _along(np.array([point, end]), 0.3 * pixels)
            far = np.hypot(*(end - point)) > _FAR * pixels
            if not (far and _touches(line, others)):
                break
        else:
            text.remove()
            continue
        text.set_position(tuple((centre - point) / pixels))
        if far:
            ends = axes.transData.inverted().transform([point, end])
            axes.plot(*ends.T, color=label.colour, linewidth=0.5, zorder=1.5, gid="label line")
            boxes = np.vstack([boxes, line])
        box = [[*(centre - half), *(centre + half)]]
        boxes, others = np.vstack([boxes, box]), np.vstack([others, box])
        texts.append(text)
    return texts


def _places(point: Any, half: Any, frame: Any, pixels: float) -> Iterator[Any]:
    """Centres of boxes of twice ``half`` inside ``frame``, in pixels: the nearest to ``point`` first."""
    for distance in np.arange(4 * pixels, max(frame.width, frame.height), _STEP * pixels):
        for angle in _ANGLES:
            way = np.array([np.cos(angle), np.sin(angle)])
            centre = point + way * (distance + half * np.abs(way))
            low, high = centre - half, centre + half
            if low[0] >= frame.x0 and low[1] >= frame.y0 and high[0] <= frame.x1 and high[1] <= frame.y1:
                yield centre


def _touches(some: Any, others: Any) -> bool:
    """Whether any of ``some`` boxes overlaps any of the ``others``."""
    a, b = some[:, None], others[None]
    return bool(np.all((a[..., :2] < b[..., 2:]) & (b[..., :2] < a[..., 2:]), axis=-1).any())


def occupied(axes: Any) -> Any:
    """The pixels that lines, markers, dots and intervals of ``axes`` cover: rows of left, bottom, right and top."""
    pixels = axes.figure.dpi / 72
    parts = [np.empty((0, 4))]
    for line in axes.lines:
        points = line.get_transform().transform(np.asarray(line.get_xydata(), dtype=float))
        if line.get_linestyle() not in ("None", "", " "):
            parts.append(_along(points, line.get_linewidth() * pixels / 2))
        if line.get_marker() not in ("None", "", " ", None):
            parts.append(_around(points, (line.get_markersize() + line.get_markeredgewidth()) * pixels / 2))
    for group in axes.collections:
        if len(group.get_offsets()) and len(group.get_sizes() if hasattr(group, "get_sizes") else []):  # dots
            places = group.get_offset_transform().transform(group.get_offsets())
            parts.append(_around(places, max(group.get_sizes()) ** 0.5 * pixels / 2))
        else:
            transform = group.get_transform()
            parts += [_along(transform.transform(path.vertices), 0.6 * pixels) for path in group.get_paths()]
    return np.vstack(parts)


def _around(points: Any, half: float) -> Any:
    return np.hstack([points - half, points + half])


def _along(points: Any, half: float) -> Any:
    """Small boxes along the line through ``points``."""
    parts = [np.empty((0, 2))]
    for start, end in pairwise(points):
        steps = max(2, int(np.hypot(*(end - start)) / 3) + 1)
        parts.append(start + np.linspace(0, 1, steps)[:, None] * (end - start))
    return _around(np.vstack(parts), max(half, 1.6))
