"""Download a data set, verify it, render its masks, draw its labels, or write synthetic data in its layout.

    python tools/prepare_data.py download davis --root inputs/DAVIS
    python tools/prepare_data.py verify davis --root inputs/DAVIS
    python tools/prepare_data.py synthesize davis --root inputs/synthetic --clips 20 --size 240x432 objects=[1,3]
    python tools/prepare_data.py convert pascal_context --root inputs/PASCAL-Context
    python tools/prepare_data.py labels camvid --out camvid.png [--root inputs/CamVid] [--example 3] [split=val]
    python tools/prepare_data.py verify --config my_run.yaml          # all data of a config, with counts per class
    python tools/prepare_data.py labels --config my_run.yaml --out example.png [--entry val]

ROOT is the data set's own folder, the `root` of a config. Run an interrupted download again to continue it.
Exit codes: 0 without problems; 1 after an error, or if verify found problems; 130 if stopped by Ctrl-C.
"""

import argparse
import hashlib
import os
import shutil
import sys
import urllib.parse
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before installed packages called tools, models or data

from mtsp.command_line import height_width, program

if TYPE_CHECKING:
    from data.catalog.datasets import Archive, Row
    from data.catalog.verify import Report
    from data.types import DatasetConfig
    from mtsp.files.progress import Advance
    from tools.build import AnyExperiment

_SHOWN_PROBLEMS = 20


def run_download(name: str, root: Path, archives: "Sequence[Archive]", *, keep: bool = False) -> None:
    """Download, check and unpack archives into `root`; skip archives that were unpacked before.

    After a DownloadError, `root` contains only completely unpacked archives.
    """
    from data.catalog.download import WORK, ArchiveError, download, require_space, unpack

    work = root / WORK
    work.mkdir(parents=True, exist_ok=True)
    for archive in archives:
        file = Path(urllib.parse.unquote(urllib.parse.urlsplit(archive.url).path)).name or name
        place = work / f"{hashlib.sha256(archive.url.encode()).hexdigest()[:8]}-{file}"  # two URLs may end alike
        done = place.with_name(f"{place.name}.done")
        if done.exists():
            print(f"{file}: already unpacked")
            continue
        with _bytes_bar(file) as progress:
            download(archive.url, place, checksum=archive.checksum, progress=progress)
        if archive.packed:
            unpacked = place.with_name(f"{place.name}.unpacked")
            require_space(work, place.stat().st_size)
            try:
                with _bytes_bar(f"unpacking {file}") as progress:
                    unpack(place, unpacked, strip=archive.strip, progress=progress)
            except ArchiveError as error:
                place.unlink()
                raise ArchiveError(f"{archive.url}: {error}; deleted, run again to fetch it anew") from error
            _merge(unpacked, root)
            shutil.rmtree(unpacked)
            if not keep:
                place.unlink()
        else:
            os.replace(place, root / file)
        done.write_text(f"{archive.url}\n")
        print(f"{file}: " + ("checksum matches" if archive.checksum else "length matches (no checksum is published)"))


def run_verify(name: str, root: Path, *, partial_copy: bool, workers: int, **settings: Any) -> int:
    """Check a data set and print its problems; return the exit code."""
    from data.catalog.verify import verify
    from mtsp.files.progress import bar

    with bar(f"reading {name}", stays=True) as progress:
        report = verify(name, root, published=not partial_copy, workers=workers, progress=progress, **settings)
    return _print_report(f"{name} at {root}", report)


def run_verify_config(file: Path, overrides: Sequence[str], entry: str | None, workers: int) -> int:
    """Check all data of a config and print problems and classes; return the exit code."""
    from data.catalog.verify import verify_entries
    from mtsp.files.progress import bar
    from tools.build import read_experiment

    entries = _entries(read_experiment(file, overrides), entry)
    with bar(f"reading the data of {file}", stays=True) as progress:
        report = verify_entries(entries, workers=workers, progress=progress)
    for name, found in report.classes.items():
        total = max(1, sum(found.pixels))
        width = max(map(len, found.names))
        print(f"{name}: {'examples with each class, and its percentage of the pixels' if found.pixels else 'images'}")
        for i, label in enumerate(found.names):
            share = f"{100 * found.pixels[i] / total:8.2f} %" if found.pixels else ""
            print(f"  {label:{width}} {found.examples[i]:8,}{share}")
    return _print_report(str(file), report)


def _entries(experiment: "AnyExperiment", entry: str | None) -> "dict[str, DatasetConfig]":
    """Return the data sets of a config, or only the one called `entry`. Raises ConfigError."""
    from mtsp.config import ConfigError

    if entry is not None and entry not in experiment.data:
        raise ConfigError(f"there is no data entry {entry!r}; the config has {', '.join(experiment.data)}")
    return {name: section.dataset for name, section in experiment.data.items() if entry in (None, name)}


def _print_report(title: str, report: "Report") -> int:
    """Print problems and numbers of examples; return the exit code."""
    for line in report.problems[:_SHOWN_PROBLEMS]:
        print(line)
    if len(report.problems) > _SHOWN_PROBLEMS:
        print(f"... and {len(report.problems) - _SHOWN_PROBLEMS} more")
    counts = ", ".join(f"{split} {count}" for split, count in report.counts.items())
    state = f"{len(report.problems)} problems" if report.problems else "no problems"
    if any("published are" in problem for problem in report.problems):
        state += "; add --partial to skip published numbers for a partial or synthetic data set"
    print(f"{title}: {sum(report.counts.values())} examples read ({counts}): {state}")
    return 1 if report.problems else 0


def run_synthesize(name: str, root: Path, values: dict[str, Any]) -> None:
    """Write synthetic data in the layout of `name`. Raises ConfigError, FileExistsError or the writer's errors."""
    from data.synthetic.clips import SyntheticConfig
    from data.synthetic.dead_leaves import DeadLeavesConfig
    from data.synthetic.layouts import LAYOUTS
    from data.synthetic.scenes import ScenesConfig
    from mtsp.config import parse
    from mtsp.files.progress import bar

    layout = LAYOUTS[_known(name, LAYOUTS, "be synthesized")]
    config = parse(layout.config, {**layout.defaults, **values})
    with bar(f"rendering {name}", stays=True) as progress:
        layout.write(config, root, progress=progress)
    if isinstance(config, SyntheticConfig):
        print(f"{root}: {config.clips} clips of {config.frames} frames, {config.height}x{config.width}")
    elif isinstance(config, ScenesConfig | DeadLeavesConfig):
        print(f"{root}: {config.images} images, {config.height}x{config.width}")


def run_convert(name: str, root: Path, annotations: Path | None, *, partial_copy: bool) -> None:
    """Render the masks of PASCAL-Context. Raises DataError or FileExistsError."""
    from data.segmentation.pascal_context import find_pascal_context, render_masks
    from mtsp.files.progress import bar

    _known(name, ["pascal_context"], "be converted")
    folder = find_pascal_context(root)
    file = annotations or root / "trainval_merged.json"
    with bar("rendering masks", stays=True) as progress:
        rendered = render_masks(file, folder, published=not partial_copy, progress=progress)
    for note in rendered.notes:
        print(f"note: {note}")
    print(f"{folder}: masks of " + ", ".join(f"{count} {split}" for split, count in rendered.counts.items()))


def run_labels(config: Any, example: int | None, out: Path) -> None:
    """Draw the label map of a data set, or one of its examples. Raises ConfigError or DataError."""
    from data.files.images import write_image
    from data.segmentation.label_map import LabelMap
    from data.segmentation.legend import labeled_example, legend
    from data.types import DataError
    from mtsp.config import ConfigError

    if config.kind == "video":
        label_map = LabelMap(config.name, ("background", "object"), (0, 1))
    elif hasattr(config, "label_map"):
        label_map = config.label_map()
    else:
        raise ConfigError(f"{config.name} has no masks to draw")
    if example is None:
        write_image(out, legend(label_map))
    else:
        dataset = config.build()
        if not 0 <= example < len(dataset):
            raise DataError(f"{config.name} has no example {example}; choose 0 to {len(dataset) - 1}")
        sample = dataset[example]
        if "mask" not in sample:
            raise DataError(f"{config.name} has no masks to draw")
        write_image(out, labeled_example(sample["frame"], sample["mask"], label_map))
        print(sample["name"])
    print(f"{out}: {len(label_map.classes)} classes of {config.name}")


def _labels_config(arguments: argparse.Namespace) -> Any:
    """Return the data set to draw: an entry of --config, or a published one, at --root if it is set."""
    from data.catalog.datasets import DATASETS
    from data.segmentation.segmented_images import SegmentedConfig
    from mtsp.config import parse
    from tools.build import read_experiment

    if arguments.config is not None:
        experiment = read_experiment(arguments.config, arguments.settings)
        return next(iter(_entries(experiment, arguments.entry).values()))
    rows = {key: row for key, row in DATASETS.items() if row.splits and issubclass(row.config, SegmentedConfig)}
    kind = rows[_known(arguments.name, rows, "be drawn")].config
    return parse(kind, {"name": arguments.name, "root": str(arguments.root or "."), **_settings(arguments)})


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = _parser()
    arguments, settings = parser.parse_known_args(argv)  # argparse does not accept positional arguments after options
    takes_settings = arguments.command in ("synthesize", "verify", "labels")
    if unknown := [word for word in settings if word.startswith("-") or not takes_settings]:
        parser.error(f"{arguments.command} does not accept {' '.join(unknown)}")
    arguments.settings = settings
    if arguments.command in ("verify", "labels") and arguments.config is not None:
        if arguments.name is not None and "=" in arguments.name:  # argparse takes the first key=value for the name
            arguments.settings, arguments.name = [arguments.name, *settings], None
        if arguments.name is not None or arguments.root is not None:
            parser.error("name a data set and --root, or a --config; not both")
    elif arguments.name is None or (arguments.command == "verify" and arguments.root is None):
        parser.error(f"{arguments.command} needs the name of a data set and --root, or --config FILE")
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        print("stopped; run again: download resumes, other commands start over", file=sys.stderr)
        return 130


def _run(arguments: argparse.Namespace) -> int:
    from data.catalog.datasets import DATASETS

    name, root = arguments.name, arguments.root
    if arguments.command == "download":
        rows = {key: row for key, row in DATASETS.items() if row.archives or row.by_hand}
        row = rows[_known(name, rows, "be downloaded")]
        run_download(name, root, _archives(arguments, row), keep=arguments.keep_archives)
    elif arguments.command == "convert":
        run_convert(name, root, arguments.annotations, partial_copy=arguments.partial)
    elif arguments.command == "labels":
        drawn = arguments.config is not None or root is not None
        run_labels(_labels_config(arguments), arguments.example if drawn else None, arguments.out)
    elif arguments.command == "synthesize":
        run_synthesize(name, root, _synthesis(arguments))
    elif arguments.config is not None:
        return run_verify_config(arguments.config, arguments.settings, arguments.entry, arguments.workers)
    else:
        _known(name, [key for key, row in DATASETS.items() if row.splits], "be verified")
        settings = _settings(arguments) | ({"resolution": arguments.resolution} if arguments.resolution else {})
        workers = arguments.workers
        return run_verify(name, root, partial_copy=arguments.partial, workers=workers, **settings)
    return 0


def _known(name: str, names: Iterable[str], verb: str) -> str:
    """Return `name`. Raises ConfigError, which lists `names`, if `name` is not one of them."""
    from mtsp.config import ConfigError

    if name not in names:
        raise ConfigError(f"{name!r} cannot {verb}; data sets that can: {', '.join(sorted(names))}")
    return name


def _archives(arguments: argparse.Namespace, row: "Row") -> "list[Archive]":
    """Return the archives to download, after applying --url, --only and checksums."""
    from data.catalog.datasets import Archive
    from mtsp.config import ConfigError

    given = ((kind, getattr(arguments, kind)) for kind in ("md5", "sha1", "sha256"))
    checksum = next((f"{kind}:{value}" for kind, value in given if value), None)
    if row.by_hand:
        raise ConfigError(row.by_hand)
    if arguments.url:
        return [Archive(arguments.url, checksum, strip=row.archives[0].strip)]
    chosen = [a for a in row.archives if not arguments.only or any(word in a.url for word in arguments.only)]
    if not chosen:
        names = ", ".join(archive.url.rpartition("/")[2] for archive in row.archives)
        raise ConfigError(f"--only {' '.join(arguments.only)} matches no archive of {row.name}; available: {names}")
    if checksum is not None:
        if len(chosen) > 1:
            raise ConfigError(f"one checksum for {len(chosen)} archives; select one archive with --only or --url")
        chosen = [chosen[0]._replace(checksum=checksum)]
    return chosen


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the key=value arguments of the command line, not validated."""
    from mtsp.config import ConfigError, parse_yaml

    values: dict[str, Any] = {}
    for setting in arguments.settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"{setting!r} must have the form key=value, as in objects=[1,3]")
        values[key] = parse_yaml(value)
    return values


def _synthesis(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the config values for synthesize from options and key=value arguments, not validated."""
    height, width = arguments.size or (None, None)
    options = {key: getattr(arguments, key) for key in ("seed", "clips", "frames", "domain", "textures")}
    options |= {"height": height, "width": width}
    return _settings(arguments) | {key: value for key, value in options.items() if value is not None}


def _parser() -> argparse.ArgumentParser:
    first, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="prepare_data.py", description=first, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    get = commands.add_parser("download", help="download, check and unpack the published archives")
    check = commands.add_parser("verify", help="read every file, compare with published numbers, print problems")
    make = commands.add_parser("synthesize", help="render clips with exact masks and flow in the data set's layout")
    convert = commands.add_parser("convert", help="render the masks of pascal_context from its annotation file")
    labels = commands.add_parser("labels", help="draw a label map, or an example and its labels if --root is set")
    for command in (get, check, make, convert, labels):
        own = command in (check, labels)
        command.add_argument(
            "name", nargs="?" if own else None, help="name of the data set; an unknown name lists the known ones"
        )
        command.add_argument("--root", type=Path, required=not own, help="folder of the data set")
        if own:
            command.add_argument("--config", type=Path, metavar="FILE", help="data of this config instead: your own")
            command.add_argument("--entry", help="only this entry of the config's `data`")
    get.add_argument("--url", help="address of an archive to download instead, for example on a mirror")
    checksum = get.add_mutually_exclusive_group()
    for kind in ("md5", "sha1", "sha256"):
        checksum.add_argument(f"--{kind}", help="expected checksum of the archive")
    only = "download only archives with WORD in their address; may be repeated"
    get.add_argument("--only", action="append", metavar="WORD", help=only)
    get.add_argument("--keep-archives", action="store_true", help="keep the archives in ROOT/.downloads")
    check.add_argument("--partial", action="store_true", help="ROOT is partial: skip comparison with published numbers")
    check.add_argument("--resolution", help="resolution of davis: 480p (default), 1080p or your own folder")
    check.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes that read (default: one per CPU)"
    )
    make.add_argument("--seed", type=int)
    make.add_argument("--clips", type=int, help="number of sequences (flying_chairs: pairs)")
    make.add_argument("--frames", type=int, help="number of frames per clip")
    make.add_argument("--size", type=height_width, metavar="HxW", help="size of the frames in pixels")
    make.add_argument("--textures", metavar="DIR", help="folder of photos to texture background and objects")
    make.add_argument("--domain", help="domain, source or target, which differ in shapes and colors")
    make.epilog = (
        "Set other keys of SyntheticConfig, ScenesConfig or DeadLeavesConfig as key=value, for example objects=[1,3]."
    )
    convert.add_argument("--annotations", type=Path, help="annotation file (default: ROOT/trainval_merged.json)")
    convert.add_argument(
        "--partial", action="store_true", help="the file is partial: skip comparison with published numbers"
    )
    labels.add_argument("--out", type=Path, required=True, help="image file to write")
    labels.add_argument("--example", type=int, default=0, help="index of the example in the split (default: 0)")
    check.epilog = labels.epilog = "Set keys of the data set's config as key=value, for example split=val."
    return parser


def _merge(source: Path, target: Path) -> None:
    """Move everything in `source` into `target`, merging folders that exist in both."""
    for path in sorted(source.iterdir()):
        place = target / path.name
        if path.is_dir() and place.is_dir():
            _merge(path, place)
        else:
            os.replace(path, place)


def _bytes_bar(title: str) -> "AbstractContextManager[Advance]":
    """Draw a progress bar of bytes, with their rate."""
    from rich.progress import DownloadColumn, TransferSpeedColumn

    from mtsp.files.progress import bar

    return bar(title, stays=True, counters=(DownloadColumn(), TransferSpeedColumn()))


if __name__ == "__main__":
    sys.exit(main())
