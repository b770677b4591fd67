"""Get a data set, check it, or make a synthetic one in its place.

    python tools/prepare_data.py download davis --root datasets/DAVIS
    python tools/prepare_data.py verify davis --root datasets/DAVIS
    python tools/prepare_data.py synthesize davis --root datasets/synthetic --clips 20 --size 240x432 objects=[1,3]

`root` is the folder of the data set itself, which `data.root` of a config names. A download that is stopped, by Ctrl-C
or by the network, continues when the same command runs again. Exit code 0: all is well; 1: something is wrong, said in
one line, or by verify in one line for each of the first problems; 130: stopped by Ctrl-C.
"""

import argparse
import os
import re
import shutil
import sys
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from data.download import download, require_space, unpack
from data.synthetic import SyntheticConfig
from data.synthetic_files import write_davis, write_flying_chairs, write_scene_flow
from data.verify import DATASETS, verify
from mtsp.config import ConfigError, parse, parse_yaml

_SHOWN_PROBLEMS = 20


class Archive(NamedTuple):
    """A file of a data set on the web."""

    url: str
    checksum: str | None = None  # None: none is published
    strip: str | None = None  # the archive's top folder, whose place `root` takes
    packed: bool = True


_FREIBURG = "https://lmb.informatik.uni-freiburg.de"
_SCENE_FLOW = f"{_FREIBURG}/data/SceneFlowDatasets_CVPR16/Release_april16/data"
_MIDDLEBURY = "https://vision.middlebury.edu/flow/data/comp/zip"


def _scene_flow(name: str) -> tuple[Archive, ...]:
    stem = f"{name.lower()}__"
    return (
        Archive(f"{_SCENE_FLOW}/{name}/raw_data/{stem}frames_cleanpass.tar"),
        Archive(f"{_SCENE_FLOW}/{name}/raw_data/{stem}frames_finalpass.tar"),
        Archive(f"{_SCENE_FLOW}/{name}/derived_data/{stem}optical_flow.tar.bz2"),
    )


ARCHIVES: dict[str, tuple[Archive, ...]] = {
    # The checksum is the one in get_davis.sh of the authors' repository (fperazzi/davis).
    "davis": (
        Archive(
            "https://graphics.ethz.ch/Downloads/Data/Davis/DAVIS-data.zip",
            "md5:0cb3cf9c5617209fa3cc4794e52a2ffa",
            strip="DAVIS",
        ),
    ),
    "flying_chairs": (
        Archive(f"{_FREIBURG}/data/FlyingChairs/FlyingChairs.zip", strip="FlyingChairs_release"),
        Archive(f"{_FREIBURG}/resources/datasets/FlyingChairs/FlyingChairs_train_val.txt", packed=False),
    ),
    "monkaa": _scene_flow("Monkaa"),
    "driving": _scene_flow("Driving"),
    "flying_things": _scene_flow("FlyingThings3D"),
    "sintel": (Archive("http://files.is.tue.mpg.de/sintel/MPI-Sintel-complete.zip"),),
    "kitti": (Archive("https://s3.eu-central-1.amazonaws.com/avg-kitti/data_scene_flow.zip"),),
    "middlebury": (
        Archive(f"{_MIDDLEBURY}/other-color-twoframes.zip"),
        Archive(f"{_MIDDLEBURY}/other-gt-flow.zip"),
    ),
}
"""Where the data sets are. All but DAVIS publish no checksum: their archives are checked by length and by unpacking.

The addresses are those that public scripts use; the one of Driving's flow is formed as Monkaa's is, and unconfirmed.
"""

SYNTHETIC: dict[str, tuple[Callable[..., None], dict[str, Any]]] = {
    "davis": (
        write_davis,
        {
            "clips": 20, "frames": 12, "height": 240, "width": 432, "motion": 4.0, "cue": 0.7,
            "objects": [1, 2], "distractors": [2, 6], "object_size": [0.12, 0.35],
        },
    ),
    "flying_chairs": (write_flying_chairs, {"clips": 500, "height": 384, "width": 512, "objects": [4, 12]}),
    "monkaa": (
        partial(write_scene_flow, name="Monkaa"),
        {"clips": 8, "frames": 10, "height": 270, "width": 480, "objects": [2, 6]},
    ),
    "driving": (
        partial(write_scene_flow, name="Driving"),
        {"clips": 8, "frames": 10, "height": 270, "width": 480, "objects": [2, 6]},
    ),
}  # fmt: skip
"""For each layout that can be synthesized, its writer and what differs from the defaults of `SyntheticConfig`."""


def run_download(name: str, root: Path, archives: Sequence[Archive], *, keep: bool = False) -> None:
    """Fetch, check and unpack `archives` into `root`; those that are unpacked already are passed over.

    Raises:
        DownloadError: see :mod:`data.download`; what is in `root` then is complete archives only.
    """
    work = root / ".downloads"
    work.mkdir(parents=True, exist_ok=True)
    for archive in archives:
        file = Path(urllib.parse.unquote(urllib.parse.urlsplit(archive.url).path)).name or name
        done = work / f"{file}.done"
        if done.exists():
            print(f"{file}: unpacked before")
            continue
        with _bar(file, bytes_=True) as progress:
            download(archive.url, work / file, checksum=archive.checksum, progress=progress)
        if archive.packed:
            unpacked = work / f"{file}.unpacked"
            require_space(work, (work / file).stat().st_size)
            with _bar(f"unpacking {file}", bytes_=True) as progress:
                unpack(work / file, unpacked, strip=archive.strip, progress=progress)
            _merge(unpacked, root)
            shutil.rmtree(unpacked)
            if not keep:
                (work / file).unlink()
        else:
            os.replace(work / file, root / file)
        done.touch()
        print(f"{file}: " + ("checksum is right" if archive.checksum else "no checksum is published, length is right"))


def run_verify(name: str, root: Path, *, partial_copy: bool, workers: int, **settings: Any) -> int:
    """Check a data set and print what is wrong; return the exit code."""
    with _bar(f"reading {name}") as progress:
        report = verify(name, root, published=not partial_copy, workers=workers, progress=progress, **settings)
    for line in report.problems[:_SHOWN_PROBLEMS]:
        print(line)
    if len(report.problems) > _SHOWN_PROBLEMS:
        print(f"... and {len(report.problems) - _SHOWN_PROBLEMS} more")
    counts = ", ".join(f"{split} {count}" for split, count in report.counts.items())
    state = f"{len(report.problems)} problems" if report.problems else "all is well"
    if any("published are" in problem for problem in report.problems):
        state += "; of a part of a data set, or a synthetic one, --partial compares no counts"
    print(f"{name} at {root}: {sum(report.counts.values())} examples read ({counts}): {state}")
    return 1 if report.problems else 0


def run_synthesize(name: str, root: Path, values: dict[str, Any]) -> None:
    """Write synthetic data in the layout of `name`. Raises ConfigError, FileExistsError, or what the writer raises."""
    write, preset = SYNTHETIC[name]
    config = parse(SyntheticConfig, {**preset, **values})
    with _bar(f"rendering {name}") as progress:
        write(config, root, progress=progress)
    print(f"{root}: {config.clips} clips of {config.frames} frames, {config.height}x{config.width}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = _parser()
    arguments, settings = parser.parse_known_args(argv)  # argparse takes no positional arguments after options
    if unknown := [word for word in settings if word.startswith("-") or arguments.command != "synthesize"]:
        parser.error(f"{arguments.command} does not know {' '.join(unknown)}")
    arguments.settings = settings
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        print("stopped; the same command continues a download, and starts a synthesis again", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:  # what a person, the network or the disk did; anything else is a bug of ours
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 1


def _run(arguments: argparse.Namespace) -> int:
    name, root = arguments.name, arguments.root
    if arguments.command == "download":
        run_download(name, root, _chosen(arguments), keep=arguments.keep)
        return 0
    if arguments.command == "verify":
        settings = {"resolution": arguments.resolution} if arguments.resolution else {}
        workers = arguments.workers
        return run_verify(name, root, partial_copy=arguments.partial, workers=workers, **settings)
    run_synthesize(name, root, _values(arguments))
    return 0


def _chosen(arguments: argparse.Namespace) -> list[Archive]:
    """Return the archives to fetch, as the command line changes them."""
    checksum = f"md5:{arguments.md5}" if arguments.md5 else f"sha256:{arguments.sha256}" if arguments.sha256 else None
    known = ARCHIVES[arguments.name]
    if arguments.url:
        return [Archive(arguments.url, checksum, strip=known[0].strip)]
    chosen = [archive for archive in known if not arguments.only or any(word in archive.url for word in arguments.only)]
    if not chosen:
        names = ", ".join(archive.url.rpartition("/")[2] for archive in known)
        raise ConfigError(f"--only {' '.join(arguments.only)} fits no archive of {arguments.name}; there are {names}")
    if checksum is not None:
        if len(chosen) > 1:
            raise ConfigError(f"one checksum for {len(chosen)} archives; choose one of them with --only or --url")
        chosen = [chosen[0]._replace(checksum=checksum)]
    return chosen


def _values(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the command line says about a SyntheticConfig, unchecked."""
    values: dict[str, Any] = {}
    for setting in arguments.settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"{setting!r} is not key=value, as in objects=[1,3]")
        values[key] = parse_yaml(value)
    for key in ("seed", "clips", "frames", "domain"):
        if getattr(arguments, key) is not None:
            values[key] = getattr(arguments, key)
    if arguments.textures is not None:
        values["textures"] = str(arguments.textures)
    if arguments.size is not None:
        values["height"], values["width"] = arguments.size
    return values


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH, as in 240x432")
    return int(match[1]), int(match[2])


def _parser() -> argparse.ArgumentParser:
    first, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="prepare_data.py", description=first, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    get = commands.add_parser("download", help="fetch, check and unpack the published archives")
    check = commands.add_parser("verify", help="read every file, count, and print what is wrong")
    make = commands.add_parser("synthesize", help="render clips with exact masks and flow in the data set's layout")
    for command, names in ((get, ARCHIVES), (check, DATASETS), (make, SYNTHETIC)):
        command.add_argument("name", choices=sorted(names))
        command.add_argument("--root", type=Path, required=True, help="the folder of the data set itself")
    get.add_argument("--url", help="fetch this archive instead of the published ones, from a mirror")
    checksum = get.add_mutually_exclusive_group()
    checksum.add_argument("--md5", help="expected MD5 of the archive")
    checksum.add_argument("--sha256", help="expected SHA-256 of the archive")
    get.add_argument(
        "--only", action="append", metavar="WORD", help="only archives with this in their name; repeatable"
    )
    get.add_argument("--keep", action="store_true", help="keep the archives in ROOT/.downloads")
    check.add_argument("--partial", action="store_true", help="a part of the data set: do not compare the counts")
    check.add_argument("--resolution", help="davis only: 480p (the default), 1080p or your own folder")
    check.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that read (default: all)")
    make.add_argument("--seed", type=int)
    make.add_argument("--clips", type=int, help="sequences, or for flying_chairs pairs")
    make.add_argument("--frames", type=int, help="per clip")
    make.add_argument("--size", type=_size, metavar="HxW")
    make.add_argument("--textures", type=Path, metavar="DIR", help="a folder of photos to cut things out of")
    make.add_argument("--domain", help="source or target: two worlds of different shapes and colors")
    make.epilog = "Any other key of SyntheticConfig is given as key=value, as in objects=[1,3]."
    return parser


def _merge(source: Path, target: Path) -> None:
    """Move everything in `source` into `target`, into folders that are there already too."""
    for path in sorted(source.iterdir()):
        place = target / path.name
        if path.is_dir() and place.is_dir():
            _merge(path, place)
        else:
            os.replace(path, place)


@contextmanager
def _bar(title: str, *, bytes_: bool = False) -> Iterator[Callable[[int, int | None], None]]:
    """Yield a function of (done, total) that moves a progress bar on the terminal's error output."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
    from rich.progress import TransferSpeedColumn as Speed

    counters = (DownloadColumn(), Speed()) if bytes_ else (MofNCompleteColumn(),)
    columns = ("{task.description}", BarColumn(), *counters, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


if __name__ == "__main__":
    sys.exit(main())
