"""Write predictions to files: masks, flow, drawings of both, and movies."""

from collections.abc import Sequence
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from tools.prediction.frames import Frames
from tools.prediction.network import Prediction

if TYPE_CHECKING:
    from mtsp.types import Sample

SUFFIXES = {"masks": ".png", "flow": ".flo", "overlay": ".png", "flow_color": ".png", "labels": ".csv"}
"""File suffix of each kind of output. There is one file per frame, but a single file for all labels."""

_NEEDS = {
    "masks": "mask_logits", "overlay": "mask_logits", "flow": "flow", "flow_color": "flow", "labels": "label_logits",
}  # fmt: skip


class Movies(ExitStack):
    """Writes a movie for each video; one is complete when the next begins or the context ends without an error."""

    def __init__(self, out: Path, radius: float | None, background: int | None, classes: Sequence[str]) -> None:
        super().__init__()
        self._out, self._settings = out, (background, radius, classes)
        self._video: Path | None = None

    def add(self, time: Fraction, raw: "Sample", prediction: Prediction) -> int:
        """Add a frame; return 1 if it is the first of a movie, else 0."""
        from data.files.movies import MovieWriter
        from mtsp.config import ConfigError
        from mtsp.figures.side_by_side import SideBySide

        has_flow = "flow" in prediction.outputs
        if not has_flow and prediction.mask is None:
            raise ConfigError("--movie: this network predicts neither masks nor flow")
        video = _movie_file(self._out, raw["name"])
        begins = video != self._video
        if begins:
            self.close()
            self._writer, self._video = self.enter_context(MovieWriter(video)), video
            self._panels = SideBySide(*self._settings)
        image = self._panels.draw(raw["frame"], prediction.mask, prediction.flow, has_flow=has_flow)
        self._writer.add(time, image)
        return int(begins)


def _movie_file(out: Path, name: str) -> Path:
    """Return the movie that the frame `name`, "video/frame" or "frame", belongs to."""
    return out / "movie" / f"{name.rpartition('/')[0] or 'frames'}.mp4"


def require_kinds(what: Sequence[str], outputs: Sequence[str], tta: str) -> None:
    """Raise ConfigError if the network cannot predict a requested kind of output, or predicts none of them."""
    from mtsp.config import ConfigError

    has = " and ".join(outputs)
    seen = "" if tta == "none" else f"with evaluation.tta `{tta}` "
    if cannot := [kind for kind in what if _NEEDS[kind] not in outputs]:
        raise ConfigError(f"--what {cannot[0]}: {seen}this network predicts {has} only")
    if not set(outputs) & set(_NEEDS.values()):
        raise ConfigError(f"{seen}this network predicts {has or 'nothing'}, which cannot be written to files")


def write(
    out: Path,
    what: Sequence[str],
    raw: "Sample",
    prediction: Prediction,
    radius: float | None,
    background: int | None = 0,
) -> int:
    """Write the files of one frame to `out`, except labels, and return the number of files.

    `what` lists keys of `SUFFIXES`. Flow vectors of `radius` pixels are drawn in full color; None uses the length
    that 95 % of the vectors do not exceed. Overlays leave the class `background` uncolored.
    """
    from data.files.flow_formats.flo import write_flo
    from data.files.images import write_image
    from data.files.masks import write_mask
    from mtsp.figures.flow_colors import flow_to_color, full_color_length
    from mtsp.figures.masks import overlay

    count = 0
    for kind in what:
        path = out / kind / f"{raw['name']}{SUFFIXES[kind]}"
        drawn = {"mask_logits": prediction.mask, "flow": prediction.flow}.get(_NEEDS[kind])
        if drawn is None:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        match kind:
            case "masks":
                write_mask(path, drawn)
            case "overlay":
                write_image(path, overlay(raw["frame"], drawn, background=background))
            case "flow":
                write_flo(path, drawn)
            case _:
                write_image(path, flow_to_color(drawn, radius or full_color_length(drawn)))
        count += 1
    return count


def require_new(out: Path, what: Sequence[str], frames: Frames, *, movie: bool = False) -> None:
    """Raise ValueError if a file that would be written exists: of the kinds `what`, or a movie."""
    names = frames.names if frames.names is not None else [f"{frames.folder}/0"]
    movies = dict.fromkeys(_movie_file(out, name) for name in names) if movie else ()
    found = [file for file in movies if file.exists()]
    for kind in what:
        if kind == "labels":
            files = [out / "labels.csv"]
        elif frames.names is not None:
            files = [out / kind / f"{name}{SUFFIXES[kind]}" for name in frames.names]
        else:
            files = sorted((out / kind / frames.folder).glob(f"*{SUFFIXES[kind]}"))
        found += [file for file in files if file.exists()]
    if found:
        raise ValueError(f"{len(found)} of the files exist already, as {found[0]}; add --overwrite to replace them")
