"""Get a data set, convert it, check it, look at its labels, or make a synthetic one in its place.

    python tools/prepare_data.py download davis --root inputs/DAVIS
    python tools/prepare_data.py verify davis --root inputs/DAVIS
    python tools/prepare_data.py synthesize davis --root inputs/synthetic --clips 20 --size 240x432 objects=[1,3]
    python tools/prepare_data.py convert pascal_context --root inputs/PASCAL-Context
    python tools/prepare_data.py labels camvid --out camvid.png [--root inputs/CamVid] [--example 3] [split=val]

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
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import DownloadColumn, TransferSpeedColumn

from data.catalog.archives import ARCHIVES, BY_HAND, Archive
from data.catalog.download import download, require_space, unpack
from data.catalog.verify import DATASETS, verify
from data.files.images import DataError, write_image
from data.segmentation.legend import labeled_example, legend
from data.segmentation.mask_images import SegmentedConfig
from data.segmentation.pascal_context import find_pascal_context, render_masks
from data.synthetic.clips import SyntheticConfig
from data.synthetic.scenes import ScenesConfig, write_scenes
from data.synthetic.writers import write_davis, write_flying_chairs, write_scene_flow
from mtsp.config import Config, ConfigError, parse, parse_yaml
from mtsp.files.progress import Advance, bar

_SHOWN_PROBLEMS = 20

SYNTHETIC: dict[str, tuple[type[Config], Callable[..., None], dict[str, Any]]] = {
    "davis": (
        SyntheticConfig,
        write_davis,
        {
            "clips": 20, "frames": 12, "height": 240, "width": 432, "motion": 4.0, "cue": 0.7,
            "objects": [1, 2], "distractors": [2, 6], "object_size": [0.12, 0.35],
        },
    ),
    "flying_chairs": (
        SyntheticConfig,
        write_flying_chairs,
        {"clips": 500, "height": 384, "width": 512, "objects": [4, 12]},
    ),
    "monkaa": (
        SyntheticConfig,
        partial(write_scene_flow, name="Monkaa"),
        {"clips": 8, "frames": 10, "height": 270, "width": 480, "objects": [2, 6]},
    ),
    "driving": (
        SyntheticConfig,
        partial(write_scene_flow, name="Driving"),
        {"clips": 8, "frames": 10, "height": 270, "width": 480, "objects": [2, 6]},
    ),
    "pascal_context": (ScenesConfig, write_scenes, {}),
}  # fmt: skip
"""For each layout that can be synthesized, its config, its writer and what differs from the config's defaults."""

SEGMENTED = {name: known.config for name, known in DATASETS.items() if issubclass(known.config, SegmentedConfig)}
"""The data sets whose label maps can be looked at."""


def run_download(name: str, root: Path, archives: Sequence[Archive], *, keep: bool = False) -> None:
    """Fetch, check and unpack `archives` into `root`; those that are unpacked already are passed over.

    Raises:
        DownloadError: see :mod:`data.catalog.download`; what is in `root` then is complete archives only.
    """
    work = root / ".downloads"
    work.mkdir(parents=True, exist_ok=True)
    for archive in archives:
        file = Path(urllib.parse.unquote(urllib.parse.urlsplit(archive.url).path)).name or name
        done = work / f"{file}.done"
        if done.exists():
            print(f"{file}: unpacked before")
            continue
        with _bytes_bar(file) as progress:
            download(archive.url, work / file, checksum=archive.checksum, progress=progress)
        if archive.packed:
            unpacked = work / f"{file}.unpacked"
            require_space(work, (work / file).stat().st_size)
            with _bytes_bar(f"unpacking {file}") as progress:
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
    with bar(f"reading {name}", stays=True) as progress:
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
    kind, write, preset = SYNTHETIC[name]
    config = parse(kind, {**preset, **values})
    with bar(f"rendering {name}", stays=True) as progress:
        write(config, root, progress=progress)
    if isinstance(config, SyntheticConfig):
        print(f"{root}: {config.clips} clips of {config.frames} frames, {config.height}x{config.width}")
    elif isinstance(config, ScenesConfig):
        print(f"{root}: {config.images} scenes, {config.height}x{config.width}")


def run_convert(root: Path, annotations: Path | None, *, partial_copy: bool) -> None:
    """Render PASCAL-Context's masks once. Raises DataError or FileExistsError."""
    folder = find_pascal_context(root)
    with bar("rendering masks", stays=True) as progress:
        rendered = render_masks(
            annotations or root / "trainval_merged.json", folder, published=not partial_copy, progress=progress
        )
    for note in rendered.notes:
        print(f"note: {note}")
    print(f"{folder}: masks of " + ", ".join(f"{count} {split}" for split, count in rendered.counts.items()))


def run_labels(name: str, root: Path | None, example: int, out: Path, values: dict[str, Any]) -> None:
    """Write a image of a data set's label map; with `root`, of an example and what is in it.

    Raises:
        ConfigError, DataError: settings, files or an example that are not there.
    """
    config = parse(SEGMENTED[name], {"name": name, "root": str(root or "."), **values})
    assert isinstance(config, SegmentedConfig)
    if root is None:
        write_image(out, legend(config.label_map()))
    else:
        dataset = config.build()
        if not 0 <= example < len(dataset):
            raise DataError(f"{name} at {root} has the examples 0 to {len(dataset) - 1}, not {example}")
        sample = dataset[example]
        assert "mask" in sample
        write_image(out, labeled_example(sample["frame"], sample["mask"], config.label_map()))
        print(f"{sample['name']}")
    print(f"{out}: {len(config.label_map().classes)} classes of {name}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = _parser()
    arguments, settings = parser.parse_known_args(argv)  # argparse takes no positional arguments after options
    takes_settings = arguments.command in ("synthesize", "verify", "labels")
    if unknown := [word for word in settings if word.startswith("-") or not takes_settings]:
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
    elif arguments.command == "convert":
        run_convert(root, arguments.annotations, partial_copy=arguments.partial)
    elif arguments.command == "labels":
        run_labels(name, root, arguments.example, arguments.out, _settings(arguments))
    elif arguments.command == "synthesize":
        run_synthesize(name, root, _values(arguments))
    else:
        settings = _settings(arguments) | ({"resolution": arguments.resolution} if arguments.resolution else {})
        workers = arguments.workers
        return run_verify(name, root, partial_copy=arguments.partial, workers=workers, **settings)
    return 0


def _chosen(arguments: argparse.Namespace) -> list[Archive]:
    """Return the archives to fetch, as the command line changes them."""
    given = ((kind, getattr(arguments, kind)) for kind in ("md5", "sha1", "sha256"))
    checksum = next((f"{kind}:{value}" for kind, value in given if value), None)
    if arguments.name in BY_HAND:
        raise ConfigError(BY_HAND[arguments.name])
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


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the key=value words of the command line, unchecked."""
    values: dict[str, Any] = {}
    for setting in arguments.settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"{setting!r} is not key=value, as in objects=[1,3]")
        values[key] = parse_yaml(value)
    return values


def _values(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the command line says about what is synthesized, unchecked."""
    values = _settings(arguments)
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
    convert = commands.add_parser("convert", help="render masks once from an annotation file")
    labels = commands.add_parser("labels", help="draw a label map, or with --root an example and its labels")
    named = {get: {*ARCHIVES, *BY_HAND}, check: DATASETS, make: SYNTHETIC, convert: ["pascal_context"]}
    for command, names in {**named, labels: SEGMENTED}.items():
        command.add_argument("name", choices=sorted(names))
        needed = command is not labels
        command.add_argument("--root", type=Path, required=needed, help="the folder of the data set itself")
    convert.add_argument("--annotations", type=Path, help="the file (default: ROOT/trainval_merged.json)")
    convert.add_argument("--partial", action="store_true", help="a part of the file: do not compare the counts")
    labels.add_argument("--out", type=Path, required=True, help="the image to write")
    labels.add_argument("--example", type=int, default=0, help="which example of the split (default: the first)")
    get.add_argument("--url", help="fetch this archive instead of the published ones, from a mirror")
    checksum = get.add_mutually_exclusive_group()
    checksum.add_argument("--md5", help="expected MD5 of the archive")
    checksum.add_argument("--sha1", help="expected SHA-1 of the archive")
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
    make.epilog = "Any other key of SyntheticConfig, or ScenesConfig, is given as key=value, as in objects=[1,3]."
    check.epilog = labels.epilog = "Any key of the data set's config is given as key=value, as in split=val."
    return parser


def _merge(source: Path, target: Path) -> None:
    """Move everything in `source` into `target`, into folders that are there already too."""
    for path in sorted(source.iterdir()):
        place = target / path.name
        if path.is_dir() and place.is_dir():
            _merge(path, place)
        else:
            os.replace(path, place)


def _bytes_bar(title: str) -> AbstractContextManager[Advance]:
    """A bar of bytes, with how many of them come in a second."""
    return bar(title, stays=True, counters=(DownloadColumn(), TransferSpeedColumn()))


if __name__ == "__main__":
    sys.exit(main())
