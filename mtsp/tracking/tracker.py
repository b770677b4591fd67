"""Tracking: where a run's numbers and figures go. `metrics.jsonl` always; Weights & Biases, TensorBoard on request.

The file is the truth. The trackers of others may fail at any time, and then a run goes on without them.
"""

import json
import logging
import math
import os
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from PIL import Image
from pydantic import Field

from mtsp.config import Config, ConfigError

METRICS = "metrics.jsonl"
FIGURES = "figures"

LOGIN_SECONDS = 30
"""How long wandb may wait for a person at a terminal to give a key."""
INIT_SECONDS = 20.0
"""How long wandb may wait for its server; its client adds about 10 s (0.31.0, measured on a closed port)."""
FINISH_SECONDS = 120.0
"""How long wandb may upload after the last step; what is left stays on disk for `wandb sync`."""

_log = logging.getLogger("mtsp")


class TrackingConfig(Config):
    """What a run reports, how often, and to whom."""

    trackers: tuple[Literal["wandb", "tensorboard"], ...] = ()
    """Trackers to report to, beside `metrics.jsonl`."""
    project: str = Field(default="mtsp", min_length=1)
    """The wandb project."""
    mode: Literal["online", "offline", "disabled"] = "online"
    """How wandb runs; the environment variable WANDB_MODE, which clusters set, comes before it."""
    log_every: int = Field(default=50, gt=0)
    """Optimizer steps between two lines of training metrics."""
    images: int = Field(default=4, ge=0)
    """Examples drawn at each validation."""


class Tracker:
    """Writes a run's numbers and figures. One process opens it; the others hold a silent one, with the same methods.

    `metrics.jsonl` in the run's folder holds one JSON object a line: `step`, `time` (seconds since 1970), then the
    values; NaN and infinities, which JSON does not have, are null. Each line is on its way to the disk when `log`
    returns. Figures are `figures/STEP-NAME.png`.
    """

    def __init__(self, folder: Path | None, metrics: "_Lines | None", others: Sequence["_Guarded"], step: int) -> None:
        self._folder = folder
        self._metrics = metrics
        self._others = others
        self._step = step

    @classmethod
    def silent(cls) -> Self:
        """Return the tracker of a process that reports nothing."""
        return cls(None, None, (), 0)

    @classmethod
    def open(
        cls,
        config: TrackingConfig,
        run_dir: Path,
        experiment: Mapping[str, Any],
        run_name: str,
        resume_state: Mapping[str, Any] | None = None,
    ) -> Self:
        """Return the tracker of a run, new or resumed. Call it on the main process.

        A resumed run continues its curves: what was logged after `resume_state` was taken is dropped, also a last line
        that a kill cut in half, and wandb goes on with the same run. A new run in a folder that already has curves
        moves them to `metrics.1.jsonl`, `metrics.2.jsonl` and so on.

        Args:
            config: the trackers wanted.
            run_dir: the run's folder; made if it is not there.
            experiment: the resolved experiment as plain data, shown beside the curves.
            run_name: what the run is called in the trackers.
            resume_state: `state()` of the checkpoint that the run goes on from.

        Raises:
            ConfigError: a tracker is not installed.
            OSError: the folder cannot be written.
        """
        if "tensorboard" in config.trackers and find_spec("tensorboard") is None:
            raise ConfigError("tracking.trackers: tensorboard is not installed; pip install mtsp[tensorboard]")
        resume = dict(resume_state) if resume_state is not None else None
        run_dir.mkdir(parents=True, exist_ok=True)
        metrics = _Lines(run_dir / METRICS, None if resume is None else resume["step"])
        others: list[_Guarded] = []
        mode = os.environ.get("WANDB_MODE", config.mode)
        if "wandb" in config.trackers and mode != "disabled":
            run_id = (resume or {}).get("wandb_id") or secrets.token_hex(4)
            others.append(_Wandb(run_dir, mode, run_id, project=config.project, name=run_name, config=dict(experiment)))
        if "tensorboard" in config.trackers:
            others.append(_TensorBoard(run_dir, None if resume is None else resume["step"], experiment))
        return cls(run_dir, metrics, others, 0 if resume is None else resume["step"])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Report `values` at optimizer step `step`.

        Raises:
            OSError: `metrics.jsonl` cannot be written, as on a full disk. Nothing else raises.
        """
        if self._metrics is None:
            return
        numbers = {name: float(value) for name, value in values.items()}
        self._metrics.append(step, numbers)
        self._step = step
        for other in self._others:
            other.log(step, numbers)

    def figures(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Report images, HW3 uint8 by name; a `/` in a name becomes `-` in the file's.

        Raises:
            OSError: a PNG cannot be written.
        """
        if self._folder is None or not images:
            return
        folder = self._folder / FIGURES
        folder.mkdir(exist_ok=True)
        for name, image in images.items():
            path = folder / f"{step:07d}-{name.replace('/', '-')}.png"
            try:
                Image.fromarray(image).save(path)
            except OSError as error:
                raise _unwritten(path, error) from error
        for other in self._others:
            other.figures(step, images)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, as JSON-able data. Take it after the `log` of the checkpoint's step."""
        run_ids = [other.run_id for other in self._others if isinstance(other, _Wandb)]
        return {"step": self._step, "wandb_id": run_ids[0] if run_ids else None}

    def close(self) -> None:
        """Finish the files and the trackers; waits at most about two minutes for an upload."""
        for other in self._others:
            other.close()
        if self._metrics is not None:
            self._metrics.close()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Return the lines of a `metrics.jsonl` as dicts, null as NaN.

    A last line without its end is passed over: the run that writes it may still be going on, or was killed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not what :class:`Tracker` writes.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no {path}; a run folder, as tools/train.py writes it, holds one")
    lines = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines[:-1], start=1):
        row = _parse(line)
        if row is None:
            raise ValueError(f"{path}, line {number}: not a JSON object of numbers with a `step`: {line[:60]!r}")
        rows.append({key: math.nan if value is None else value for key, value in row.items()})
    return rows


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:  # also what is not UTF-8
        return None
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        return None
    return row if all(value is None or isinstance(value, int | float) for value in row.values()) else None


def _unwritten(path: Path, error: OSError) -> OSError:
    reason = error.strerror or error
    return OSError(error.errno, f"cannot write: {reason}; what was written before is kept", str(path))


class _Lines:
    """`metrics.jsonl`, open for appending."""

    def __init__(self, path: Path, resume_step: int | None) -> None:
        self._path = path
        try:
            if resume_step is not None:
                _drop_after(path, resume_step)
            elif path.is_file() and path.stat().st_size:
                _move_aside(path)
            # Unbuffered: a line is one write, and what is wrong with the disk is raised by it.
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise _unwritten(path, error) from error

    def append(self, step: int, values: Mapping[str, float]) -> None:
        row = {"step": step, "time": round(time.time(), 3)}
        assert not row.keys() & values.keys(), "`step` and `time` are the line's own"
        row |= {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        try:
            while line:  # a nearly full disk takes a part of it, and the next write raises
                line = line[self._file.write(line) :]
        except OSError as error:
            raise _unwritten(self._path, error) from error

    def close(self) -> None:
        self._file.close()


def _drop_after(path: Path, step: int) -> None:
    """Keep the whole lines up to `step`. The file is replaced at once or not at all."""
    if not path.exists():
        _log.warning("%s is not there: the curves of the resumed run begin at step %d", path, step)
        return
    old = path.read_bytes()
    lines = [line for line in old.split(b"\n") if line]
    rows = [(line, _parse(line)) for line in lines]
    new = b"".join(line + b"\n" for line, row in rows if row is not None and row["step"] <= step)
    if new == old:
        return
    broken = sum(row is None for _, row in rows)
    later = len(lines) - broken - new.count(b"\n")
    _log.info("%s: dropped %d lines after step %d and %d broken ones", path, later, step, broken)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        file.write(new)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _move_aside(path: Path) -> None:
    number = 1
    while (aside := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
        number += 1
    path.rename(aside)
    _log.warning("%s holds the curves of an earlier run; moved to %s", path, aside.name)


class _Guarded:
    """A tracker of others, which must never stop a run: after a failure its next mode is tried, after the last none."""

    name: str

    def __init__(self, modes: Iterable[str]) -> None:
        self._modes = list(modes)
        self._sink: Any = None
        self._attempt(lambda sink: None)

    def _open(self, mode: str) -> Any:
        """Return the tracker's own run or writer."""
        raise NotImplementedError

    def log(self, step: int, values: Mapping[str, float]) -> None:
        raise NotImplementedError

    def figures(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def _attempt(self, action: Callable[[Any], object]) -> None:
        while self._modes:
            try:
                if self._sink is None:
                    self._sink = self._open(self._modes[0])
                action(self._sink)
            except Exception as error:  # whatever it is, it is not worth a training run
                failed, *self._modes = self._modes
                self._sink = None
                reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
                rest = f"goes on {self._modes[0]}" if self._modes else "goes on without it"
                _log.warning(
                    "%s (%s) FAILED: %s; the run %s, %s has every number", self.name, failed, reason, rest, METRICS
                )
            else:
                return


class _Wandb(_Guarded):
    name = "wandb"

    def __init__(self, run_dir: Path, mode: str, run_id: str, **about: Any) -> None:
        self.run_id = run_id
        self._run_dir = run_dir
        self._about = about
        super().__init__([mode] if mode == "offline" else [mode, "offline"])

    def _open(self, mode: str) -> Any:
        import wandb

        if mode == "offline":
            wandb.teardown()  # a run that failed still holds its id: "run ID ... is in use"
        elif not wandb.login(timeout=LOGIN_SECONDS, verify=False):
            raise RuntimeError("no API key; `wandb login` stores one")
        run = wandb.init(
            **self._about,
            dir=self._run_dir,
            id=self.run_id,
            resume="allow",
            mode=mode,  # pyright: ignore[reportArgumentType]
            reinit="create_new",  # leave alone a run that the caller's notebook has
            settings=wandb.Settings(init_timeout=INIT_SECONDS, finish_timeout=FINISH_SECONDS),
        )
        # Steps go into a metric of our own. wandb's `step` begins at 0 again when a run is resumed offline, and a
        # value that is logged at a smaller one is dropped.
        run.define_metric("global_step")
        run.define_metric("*", step_metric="global_step")
        return run

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._attempt(lambda run: run.log({**values, "global_step": step}))

    def figures(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        def send(run: Any) -> None:
            import wandb

            run.log({**{name: wandb.Image(image) for name, image in images.items()}, "global_step": step})

        self._attempt(send)

    def close(self) -> None:
        if self._sink is not None:
            self._modes = self._modes[:1]  # no second run for a first that cannot end
            self._attempt(lambda run: run.finish())


class _TensorBoard(_Guarded):
    name = "tensorboard"

    def __init__(self, run_dir: Path, resume_step: int | None, experiment: Mapping[str, Any]) -> None:
        self._run_dir = run_dir
        self._resume_step = resume_step
        self._experiment = experiment
        super().__init__(["files"])

    def _open(self, mode: str) -> Any:
        import yaml
        from torch.utils.tensorboard import SummaryWriter

        purge = None if self._resume_step is None else self._resume_step + 1
        writer = SummaryWriter(str(self._run_dir / "tensorboard"), purge_step=purge)
        if purge is None:
            text = yaml.safe_dump(dict(self._experiment), sort_keys=False)
            writer.add_text("experiment", "\n".join("    " + line for line in text.splitlines()))
        return writer

    def log(self, step: int, values: Mapping[str, float]) -> None:
        def send(writer: Any) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)
            writer.flush()

        self._attempt(send)

    def figures(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        def send(writer: Any) -> None:
            for name, image in images.items():
                writer.add_image(name, image, step, dataformats="HWC")
            writer.flush()

        self._attempt(send)

    def close(self) -> None:
        if self._sink is not None:
            self._attempt(lambda writer: writer.close())
