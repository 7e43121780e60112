"""What all pictures share: the frame, the files, and one colour and marker for each method."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

from eef.analysis.arms import Arm, method_options
from eef.files import disk_errors

WIDTH = 6.75  # inches: both columns of a paper
LEAST_SEEDS = 3  # of an interval in a picture: with two it is 13 standard errors wide, or narrow by chance
CLIPPED = "triangle at an edge: the interval goes beyond it"
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture everywhere
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "hatch.linewidth": 0.8,
    "pdf.fonttype": 42,  # TrueType, which journals ask for
    "svg.hashsalt": "eef",
    "text.parse_math": False,  # prices have dollar signs
}


class Look(NamedTuple):
    """How an arm is drawn. Colour and marker belong to its method, line style and fill to its experts and its K."""

    colour: str
    marker: str
    line: Any = "-"
    fill: str = "full"


# Colours after Okabe and Ito and after Tol, for colour-blind readers. Those of a method and of what it is compared with
# differ in lightness too, and each method has a marker of its own, which its dots share. An option follows its method.
LOOKS = {
    "sft_pos": Look("#333333", "D"),
    "rft": Look("#0B4F8A", "s"),
    "eef": Look("#D55E00", "o"),
    "eef restart_only": Look("#E69F00", "^"),
    "eef random_segments": Look("#AA4499", "v"),
    "eef mask_harmful": Look("#56B4E9", "P"),
    "eef recovery": Look("#117733", "<"),
    "eef one_per_state": Look("#882255", ">"),
    "eef all_experts": Look("#999933", "h"),
    "eef_adaptive": Look("#C2185B", "x"),
    "eef_adaptive adaptive": Look("#F48FB1", "2"),
    "eef_soft": Look("#5C6BC0", "+"),
    "eef_soft weighted": Look("#B0B8E8", "3"),
    "eef_pairs": Look("#00838F", "4"),
    "eef_pairs verified": Look("#80CBC4", "|"),
    "rft random_navigation": Look("#6699CC", "p"),
    "eto": Look("#006B4F", "X"),
    "eto own_pairs": Look("#44AA99", "1"),
    "nat": Look("#7B68C8", "d"),
    "sft_all": Look("#8C6D31", "8"),
    "ceiling": Look("#707070", "*"),
    "expert": Look("#A8A8A8", "H"),
}
_OTHERS = [Look(colour, marker) for marker in "2+x34|_" for colour in ("#661100", "#AA4466", "#4477AA", "#228833")]
_STROKES = "1234+x|_"  # markers without an area
LINES: list[Any] = ["-", "--", ":", "-."]
FILLS = ["full", "none", "left", "bottom"]


def looks(arms: Iterable[Arm]) -> dict[Arm, Look]:
    """How to draw each of the ``arms``, which are shown together.

    A method or ablation in ``LOOKS`` has the same colour and marker in all pictures. The look of any other follows from
    its name; if two names in one picture would share a look, the later one in the alphabet has the next free one. The
    first of several experts or K of one method has a solid line and filled markers.
    """
    arms = list(arms)
    base: dict[str, Look] = {}
    for method in sorted({arm.method for arm in arms}):
        name, options = method_options(method)
        base[method] = LOOKS.get(" ".join([name, *options])) or _other(method, base)
    order: dict[str, list[Any]] = {}
    for arm in sorted(arms, key=_by_variant):
        variants = order.setdefault(arm.method, [])
        if (variant := (arm.k, arm.experts)) not in variants:
            variants.append(variant)
    places = {arm: order[arm.method].index((arm.k, arm.experts)) for arm in arms}
    return {
        arm: base[arm.method]._replace(line=LINES[place % len(LINES)], fill=FILLS[place % len(FILLS)])
        for arm, place in places.items()
    }


def _by_variant(arm: Arm) -> tuple[Any, ...]:
    return arm.k or 1, arm.experts.count("+"), arm.experts


def _other(method: str, taken: dict[str, Look]) -> Look:
    first = crc32(method.encode()) % len(_OTHERS)
    choices = [*_OTHERS[first:], *_OTHERS[:first]]
    return next((look for look in choices if look not in taken.values()), choices[0])


def marker_style(look: Look, size: float = 5.5) -> dict[str, Any]:
    """Keyword arguments of a matplotlib line for the markers of a look; ``size`` in points."""
    wide = {"*": 1.5, "D": 0.85, "d": 1.1, "P": 1.15, "X": 1.15}.get(look.marker, 1)
    edge = "white" if look.fill == "full" and look.marker not in _STROKES else look.colour
    return {
        "color": look.colour, "marker": look.marker, "markersize": size * wide, "markeredgecolor": edge,
        "markerfacecolor": "white" if look.fill == "none" else look.colour, "markerfacecoloralt": "white",
        "fillstyle": "full" if look.fill == "none" else look.fill, "markeredgewidth": 0.6 if edge == "white" else 1.1,
    }  # fmt: skip


def draw_dots(axes: Any, x: Any, y: Any, look: Look) -> None:
    """A small open marker for each run, in the shape of its method, so that they differ in greyscale as well."""
    edge = {"color": look.colour} if look.marker in _STROKES else {"facecolors": "none", "edgecolors": look.colour}
    axes.scatter(x, y, s=10, marker=look.marker, alpha=0.6, linewidths=0.6, zorder=2.5, gid="runs", **edge)


def mark_clipped(
    axes: Any, at: float, low: float, high: float, limits: Sequence[float], colour: str, flat: bool
) -> None:
    """A triangle at each of the ``limits`` of the axes that an interval exceeds; ``flat``: the interval is horizontal.

    ``at``: where the interval stands on the other axis. Ends that are NaN exceed nothing.
    """
    for beyond, limit, marker in ((low < limits[0], limits[0], "<" if flat else "v"),
                                  (high > limits[1], limits[1], ">" if flat else "^")):  # fmt: skip
        if beyond:
            place = ([limit], [at]) if flat else ([at], [limit])
            axes.plot(*place, marker, color=colour, markersize=4.5, clip_on=False, zorder=5, gid="clipped")


def percent(share: float) -> str:
    """A share as whole per cent, with one half rounded up: ``33 %`` for 13 of 40."""
    return f"{math.floor(100 * share + 0.5 + 1e-9):d} %"


@contextmanager
def picture(
    out: str | Path,
    stem: str,
    high: float,
    title: str,
    subtitle: str,
    margins: Sequence[float],
    panels: Sequence[float] = (1,),
    gap: float = 0,
) -> Iterator[Any]:
    """Axes to draw on, in a figure of ``WIDTH`` by ``high`` inches; :func:`write_picture` writes it after the block.

    ``margins``: left, right, top and bottom. ``panels``: relative widths of panels side by side, ``gap`` inches apart.
    Yields the axes of the only panel, or a list of axes.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    left, right, top, bottom = margins
    with rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, high), dpi=240)  # no pyplot, so no display and no state
        FigureCanvasAgg(figure)
        room = WIDTH - left - right - gap * (len(panels) - 1)
        axes, at = [], left
        for share in panels:
            wide = room * share / sum(panels)
            axes.append(figure.add_axes((at / WIDTH, bottom / high, wide / WIDTH, 1 - (top + bottom) / high)))
            at += wide + gap
        yield axes[0] if len(axes) == 1 else axes
        figure.suptitle(title, x=0.08 / WIDTH, y=1 - 0.06 / high, ha="left", va="top", fontsize=11, weight="bold")
        place: dict[str, Any] = {"ha": "left", "va": "top", "fontsize": 7.5, "color": "#444444"}
        figure.text(0.08 / WIDTH, 1 - 0.29 / high, subtitle, **place)
        write_picture(figure, Path(out), stem)


def write_picture(figure: Any, out: Path, stem: str) -> None:
    """Write PNG (1,620 pixels wide), SVG and PDF (fonts embedded) into ``out``. Equal figures give equal bytes."""
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        figure.savefig(out / f"{stem}.svg", metadata={"Date": None})
        figure.savefig(out / f"{stem}.pdf", metadata={"CreationDate": None})
        figure.savefig(out / f"{stem}.png", metadata={"Software": None})
