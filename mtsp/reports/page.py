"""Write runs as one HTML file that needs no network: settings, curves, final values, tables and figures."""

import base64
import html
import io
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from PIL import Image

from mtsp.evaluation.metrics_by_kind import lower_is_better
from mtsp.files.atomic_file import write_atomically
from mtsp.files.progress import bar
from mtsp.reports.runs import HEADLINES, RunLog
from mtsp.tracking.tracker import FIGURES

_LOG = logging.getLogger("mtsp")
_TEMPLATE = Path(__file__).with_name("page.html")
_MOST_FIGURES = 200
_FIGURE_BYTES = 9_000_000  # of all figures, before base64 makes them a third larger
_MOST_POINTS = 1000  # of one curve
_NO_CURVES = ("step", "time")
_ANCHOR = {
    "distance": (
        "Distance to the anchor",
        "||w - w0|| / ||w0|| of each branch; 0 at the start of a pretrained branch.",
    ),
    "pull_to_gradient": ("Pull", "||pull|| / ||gradient of the loss|| of each branch in the logged step."),
    "time_constant": (
        "Time constant of the pull",
        "Steps after which the pull alone would leave 1/e of the distance, at the learning rate of that step.",
    ),
}


def write_page(runs: Sequence[RunLog], path: Path) -> None:
    """Write one HTML file, below 15 MB for usual runs, that compares runs. It holds everything and asks no network.

    It has the values of `results.json`, or the last logged ones; curves with a chooser; distance and pull of each
    branch, and of each layer at the end; values by sequence and class, from `evaluation.json` and every other JSON file
    of `tools/evaluate.py` in the run folders; at most 200 figures, evenly spaced over the steps, as WebP; and the
    settings, with differences marked.

    Raises:
        ValueError: a JSON file in a run folder is damaged.
        OSError: the page cannot be written.
    """
    runs = list({run.path.resolve(): run for run in runs}.values())
    labels = _labels(runs)
    curves = {
        name: [_points(run.curve(name)) for run in runs] for name in dict.fromkeys(m for r in runs for m in r.metrics)
    }
    thinned = any(len(run.curve(name)) > _MOST_POINTS for run in runs for name in curves)
    figures, about_figures = _figures(runs)
    title = "Runs: " + ", ".join(dict.fromkeys(run.name for run in runs))
    data = {
        "about": f"{len(runs)} runs. Uncheck a run to hide its curves and figures." if len(runs) > 1 else "",
        "runs": [{"label": label, "path": str(run.path)} for label, run in zip(labels, runs, strict=True)],
        "final": _final(runs, labels),
        "curves": curves,
        "curves_about": "Point at a curve to read its values."
        + (f" Curves of more than {_MOST_POINTS} points are thinned; their extremes are kept." if thinned else ""),
        "chosen": [name for name in curves if _matches(name, ("train/loss", *HEADLINES))][:6] or list(curves)[:4],
        "anchor": [
            {"title": heading, "about": about, "metrics": found}
            for kind, (heading, about) in _ANCHOR.items()
            if (found := [name for name in curves if _matches(name, (kind, f"{kind}/*"))])
        ],
        "layers": _layers(runs),
        "tables": _tables(runs, labels),
        "figures": figures,
        "figures_about": about_figures,
        "config": _config(runs),
    }
    # Within <script>, only `<` could end the data; `\u003c` is the same character to JSON.
    text = json.dumps(_plain(data), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    head, body, rest, end = re.split("@TITLE@|@DATA@", _TEMPLATE.read_text(encoding="utf-8"))
    write_atomically(path, "".join((head, html.escape(title), body, html.escape(title), rest, text, end)).encode())


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _labels(runs: Sequence[RunLog]) -> list[str]:
    """Return the shortest kind of label that tells all runs apart."""
    kinds = (
        [run.name for run in runs],
        [f"{run.name}, seed {run.seed}" for run in runs],
        [run.path.name for run in runs],
    )
    return next((labels for labels in kinds if len(set(labels)) == len(runs)), [str(run.path) for run in runs])


def _plain(value: Any) -> Any:
    """Return data as JSON can hold it: null for NaN and infinities, six digits for other numbers."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def _points(curve: Mapping[int, float]) -> list[tuple[int, float]]:
    """Return the points of a curve; of a long one, the first, the lowest and the highest of equal stretches."""
    points = list(curve.items())
    if len(points) <= _MOST_POINTS:
        return points
    length = math.ceil(len(points) / (_MOST_POINTS // 3))
    kept = {points[-1][0]}
    for begin in range(0, len(points), length):
        stretch = points[begin : begin + length]
        numbers = [point for point in stretch if math.isfinite(point[1])] or stretch
        lowest, highest = (pick(numbers, key=lambda point: point[1]) for pick in (min, max))
        gaps = [point[0] for point in stretch if not math.isfinite(point[1])][:1]
        kept |= {stretch[0][0], lowest[0], highest[0], *gaps}
    return [point for point in points if point[0] in kept]


def _final(runs: Sequence[RunLog], labels: Sequence[str]) -> dict[str, Any]:
    """Return a row of values for each metric of the validation, with the runs that have the best one."""
    results = [_read_json(run.path / "results.json") for run in runs]
    unfinished = []
    values: list[dict[str, float]] = []
    for run, label, found in zip(runs, labels, results, strict=True):
        if found:
            entries = {entry: part for entry, part in found.items() if isinstance(part, dict)}
            values.append({f"{entry}/{name}": value for entry, part in entries.items() for name, value in part.items()})
        else:
            unfinished.append(label)
            values.append({name: last for name in run.metrics if (last := run.last(name)) is not None})
    rows = []
    for name in dict.fromkeys(name for part in values for name in part):
        row = [part.get(name) for part in values]
        numbers = [value for value in row if isinstance(value, int | float) and math.isfinite(value)]
        lower = lower_is_better(name)
        best = (min if lower else max)(numbers) if len(set(numbers)) > 1 else None
        headline = _matches(name, HEADLINES)
        rows.append(
            {
                "name": name,
                "lower": lower and "/" in name,
                "headline": headline,
                "values": row,
                "best": [i for i, value in enumerate(row) if headline and best is not None and value == best],
            }
        )
    about = ("Bold: best of these runs. " if len(runs) > 1 else "") + "↓: lower is better."
    if unfinished:
        about += f" Values last logged, because results.json has none: {', '.join(unfinished)}."
    return {"about": about, "rows": rows}


def _read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, or {} if there is no file or another kind of value in it."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # includes invalid UTF-8
        raise ValueError(f"{path}: not a JSON file ({error}); remove it, or write it again") from error
    return found if isinstance(found, dict) else {}


def _layers(runs: Sequence[RunLog]) -> list[dict[str, Any]]:
    """Return distance and pull of the layers of each branch at the end, in the network's order, for the runs."""
    ends = [_read_json(run.path / "layers.json") for run in runs]
    branches: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for end in ends for name in end):
        branches.setdefault(name.partition(".")[0], []).append(name)
    return [
        {
            "branch": branch,
            "names": [name.removeprefix(f"{branch}.").removesuffix(".weight") for name in names],
            **{
                key: [[end.get(name, {}).get(key) for name in names] for end in ends]
                for key in ("distance", "pull_to_gradient")
            },
        }
        for branch, names in branches.items()
    ]


def _tables(runs: Sequence[RunLog], labels: Sequence[str]) -> list[dict[str, Any]]:
    """Return the tables by sequence, object and class of each data entry; one table has the rows of all runs."""
    found: dict[tuple[str, str], list[tuple[str, str, dict[str, Any]]]] = {}
    for run, label in zip(runs, labels, strict=True):
        files = {file.name: _read_json(file) for file in sorted(run.path.glob("*.json"))}
        evaluations = {
            name: entries for name, part in files.items() if isinstance(entries := part.get("entries"), dict)
        }
        for file, entries in evaluations.items():
            whose = label if len(evaluations) == 1 else f"{label}, {file}"
            for entry, values in entries.items():
                for kind, rows in _by_part(values if isinstance(values, dict) else {}):
                    found.setdefault((entry, kind), []).extend((whose, name, row) for name, row in rows.items())
    tables = []
    for (entry, kind), rows in found.items():
        several = len({whose for whose, _, _ in rows}) > 1
        metrics = list(dict.fromkeys(metric for *_, row in rows for metric, value in row.items() if value is not None))
        cells = [
            [name, *([whose] if several else []), *(row.get(metric) for metric in metrics)] for whose, name, row in rows
        ]
        columns = [kind, *(["run"] if several else []), *metrics]
        tables.append({"title": f"{entry}, by {kind}", "columns": columns, "rows": cells})
    return tables


def _by_part(values: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, dict[str, Any]]]]:
    """Yield the kind of part (sequence, object, class) and the numbers of each, from one entry of an evaluation."""
    for kind in ("sequence", "object"):
        parts = values.get(f"per_{kind}")
        if isinstance(parts, dict) and parts:
            if kind == "object":
                parts = {f"{name} {number}": row for name, group in parts.items() for number, row in group.items()}
            yield kind, {name: {key: v for key, v in row.items() if _is_number(v)} for name, row in parts.items()}
    classes: dict[str, dict[str, Any]] = {}
    for metric, title in (("class_iou", "IoU"), ("accuracy_of_class", "accuracy")):
        part = values.get(metric, {})
        for name, value in part.items() if isinstance(part, dict) else enumerate(part):
            classes.setdefault(str(name), {})[title] = value
    if classes:
        yield "class", classes


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, int | float)


def _config(runs: Sequence[RunLog]) -> list[dict[str, Any]]:
    """Return each setting's values in all runs, as text, and whether they differ."""
    settings = [dict(_flat(run.experiment)) for run in runs]
    rows = []
    for key in dict.fromkeys(key for part in settings for key in part):
        values = [part.get(key, "-") for part in settings]
        rows.append({"key": key, "values": values, "differs": len(set(values)) > 1})
    return rows


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _figures(runs: Sequence[RunLog]) -> tuple[list[dict[str, Any]], str]:
    """Return the figures by name, and a sentence about those that were left out."""
    series: dict[str, dict[int, dict[int, Path]]] = {}
    for index, run in enumerate(runs):
        for file in sorted((run.path / FIGURES).glob("*.png")):
            if match := re.fullmatch(r"(\d+)-(.+)", file.stem):
                series.setdefault(match[2], {}).setdefault(index, {})[int(match[1])] = file
    lengths = [len(steps) for by_run in series.values() for steps in by_run.values()]
    each = max((n for n in range(1, _MOST_FIGURES + 1) if sum(min(n, k) for k in lengths) <= _MOST_FIGURES), default=1)
    chosen = [
        (name, index, step, steps[step])
        for name, by_run in series.items()
        for index, steps in by_run.items()
        for step in _spaced(sorted(steps), each)
    ][:_MOST_FIGURES]
    figures: dict[str, list[dict[str, Any]]] = {}
    videos = _videos(list(series))
    unreadable, left = [], _FIGURE_BYTES
    with bar("figures", len(chosen)) as advance:
        for number, (name, index, step, file) in enumerate(chosen):
            try:
                image = _encoded(file, left // (len(chosen) - number))
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                _LOG.warning("%s is left out: %s", file, error)
                unreadable.append(file.name)
            else:
                left -= len(image)
                source = "data:image/webp;base64," + base64.b64encode(image).decode()
                video, frame = videos[name]
                figures.setdefault(video, []).append({"run": index, "step": step, "frame": frame, "source": source})
            advance()
    about = "Each run shows its newest figure at or before the step of the slider."
    if len(chosen) < sum(lengths):
        about += f" The page has {len(chosen)} of {sum(lengths)} figures; the others are in the run folders."
    if unreadable:
        about += f" Could not be read: {', '.join(unreadable)}."
    return [{"name": name, "images": images} for name, images in figures.items()], about


def _videos(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return video and frame by name of a figure: several names that end in a number and begin alike are a video."""
    parts = {name: re.fullmatch(r"(.+)-(\d+)", name) for name in names}
    sizes = Counter(match[1] for match in parts.values() if match)
    return {
        name: (match[1], match[2]) if match and sizes[match[1]] > 1 else (name, "") for name, match in parts.items()
    }


def _spaced(steps: Sequence[int], count: int) -> list[int]:
    """Return at most `count` of the steps at even spaces, always with the last, and with the first if two fit."""
    if len(steps) <= count:
        return list(steps)
    if count == 1:
        return [steps[-1]]
    return [steps[round(i * (len(steps) - 1) / (count - 1))] for i in range(count)]


def _encoded(file: Path, most: int) -> bytes:
    """Return an image file as WebP of at most `most` bytes (or 32 pixels): at lower quality first, then smaller."""
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    image.thumbnail((1600, 1600))
    while True:
        for quality in (82, 60, 40):
            buffer = io.BytesIO()
            image.save(buffer, "WEBP", quality=quality, method=2)
            if buffer.tell() <= most or max(image.size) <= 32:
                return buffer.getvalue()
        image = image.resize([max(1, round(side * 0.75)) for side in image.size])
