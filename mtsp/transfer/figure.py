"""Draw a transport plan: how much mass moves from each source class to each target class."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

SHOWN = 60
"""Maximum number of lines on each side. If there are more classes, those with the least mass share the last line."""

_SYNSET = re.compile(r"^(?:[^/]*/)?(?:n\d{8}_|\d{3,4}\.)")  # n01440764_tench, 001.Black_footed_Albatross
_FAINT = 0.002  # fraction of the total mass below which a band is not drawn
_GAP = 0.35  # total height of the gaps, relative to the total height of the classes
_LONGEST = 30  # characters of a class name


def draw_plan(path: Path, plan: np.ndarray, sources: Sequence[str], targets: Sequence[str], title: str) -> None:
    """Write a PNG of a transport plan: source classes left, target classes right, and bands for the mass that moves.

    The height of a class is its fraction of the domain's mass; bands have the color of the target class. If a side has
    more than :data:`SHOWN` classes, those with the least mass are drawn as one.

    Args:
        path: .png file to write.
        plan: n x m, sum 1.
        sources: names of the n source classes, shown without a leading synset ID or CUB number.
        targets: names of the m target classes, shown in the same way.
        title: text above the figure.
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    plan, left = _gathered(plan, [plain(name) for name in sources])
    transposed, right = _gathered(plan.T, [plain(name) for name in targets])
    rows, columns = untangled(transposed.T)
    rows, columns = _last(rows, len(sources) > SHOWN), _last(columns, len(targets) > SHOWN)
    plan, left, right = transposed.T[np.ix_(rows, columns)], [left[i] for i in rows], [right[j] for j in columns]

    lines = max(len(left), len(right))
    height = 1.0 + 0.27 * lines
    figure = Figure(figsize=(10, height), dpi=130)
    FigureCanvasAgg(figure)
    axes: Any = figure.add_axes((0.27, 0.1 / height, 0.46, 1 - 0.85 / height))
    tops, floors = _stacked(plan.sum(axis=1)), _stacked(plan.sum(axis=0))
    colors = colormaps["turbo"](np.linspace(0.05, 0.95, len(right)))
    _bands(axes, plan, tops, floors, colors)
    for x, side, align, heading, names, places in (
        (0, -0.02, "right", "fraction of the source, class", left, tops),
        (1, 1.02, "left", "target class, fraction", right, floors),
    ):
        axes.text(side, -0.02, heading, ha=align, va="bottom", fontsize=8, style="italic", color=(0.35, 0.35, 0.35))
        for index, (name, (low, high)) in enumerate(zip(names, places, strict=True)):
            shade = colors[index] if x else (0.25, 0.25, 0.25)
            axes.add_patch(Rectangle((x - 0.012, low), 0.024, high - low, facecolor=shade, linewidth=0, clip_on=False))
            text = f"{name}  {high - low:.1%}" if x else f"{high - low:.1%}  {name}"
            axes.text(side, (low + high) / 2, text, ha=align, va="center", fontsize=8)
    axes.set_xlim(-0.012, 1.012)
    axes.set_ylim(max(tops[-1][1], floors[-1][1]) + 0.005, -0.005)
    axes.axis("off")
    figure.suptitle(title, fontsize=10, y=1 - 0.12 / height, va="top")
    figure.savefig(path, format="png")


def plain(name: str) -> str:
    """Return a readable class name: `n01530575_brambling` becomes brambling, `012.Yellow_Bird` becomes Yellow Bird."""
    name = _SYNSET.sub("", name).replace("_", " ").strip() or name
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"


def untangled(plan: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return an order of rows and columns with few crossing bands: each near the mean position of its partners."""
    rows, columns = np.arange(plan.shape[0]), np.arange(plan.shape[1])
    row_place, column_place = np.zeros(len(rows)), np.linspace(0, 1, len(columns))
    for _ in range(20):
        row_place = _places(plan @ column_place / np.maximum(plan.sum(axis=1), 1e-300), plan.sum(axis=1))
        column_place = _places(row_place @ plan / np.maximum(plan.sum(axis=0), 1e-300), plan.sum(axis=0))
    return np.argsort(row_place, kind="stable"), np.argsort(column_place, kind="stable")


def _places(centers: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """Return the middle position of each class if classes are stacked in the order of `centers`."""
    order = np.argsort(centers, kind="stable")
    places = np.empty(len(centers))
    places[order] = np.cumsum(mass[order]) - mass[order] / 2
    return places


def _gathered(plan: np.ndarray, names: list[str]) -> tuple[np.ndarray, list[str]]:
    """Return the rows with the most mass, in their original order, and the sum of all other rows as the last row."""
    if len(names) <= SHOWN:
        return plan, names
    heaviest = np.sort(np.argsort(-plan.sum(axis=1), kind="stable")[: SHOWN - 1])
    rest = np.setdiff1d(np.arange(len(names)), heaviest)
    rows = np.concatenate([plan[heaviest], plan[rest].sum(axis=0, keepdims=True)])
    return rows, [*(names[i] for i in heaviest), f"{len(rest)} others"]


def _last(order: np.ndarray, gathered: bool) -> np.ndarray:
    """Return `order`; if classes were gathered, the line that sums them up (the highest index) is moved to the end."""
    return np.append(order[order != order.max()], order.max()) if gathered else order


def _stacked(mass: np.ndarray) -> list[tuple[float, float]]:
    """Return the low and high end of each class; the total height is the same for any number of classes."""
    gap = _GAP / max(1, len(mass) - 1)
    ends = np.cumsum(mass) + gap * np.arange(len(mass))
    return [(float(end - m), float(end)) for end, m in zip(ends, mass, strict=True)]


def _bands(axes: Any, plan: np.ndarray, tops: Any, floors: Any, colors: np.ndarray) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Curve

    starts, ends = [low for low, _ in tops], [low for low, _ in floors]
    codes = [Curve.MOVETO, *[Curve.CURVE4] * 3, Curve.LINETO, *[Curve.CURVE4] * 3, Curve.CLOSEPOLY]
    for i, j in np.ndindex(*plan.shape):
        share = float(plan[i, j])
        a, b = starts[i], ends[j]
        starts[i], ends[j] = a + share, b + share
        if share < _FAINT:
            continue
        corners = [(0, a), (0.5, a), (0.5, b), (1, b), (1, b + share), (0.5, b + share), (0.5, a + share),
                   (0, a + share), (0, a)]  # fmt: skip
        axes.add_patch(PathPatch(Curve(corners, codes), facecolor=colors[j], alpha=0.55, linewidth=0))
