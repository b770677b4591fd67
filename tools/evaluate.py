"""Evaluate a trained network: `accelerate launch tools/evaluate.py --config RUN/experiment.yaml --checkpoint RUN/...`.

`--checkpoint` is RUN/weights.safetensors or RUN/checkpoints/step-...; key=value changes the config as in training. Each
entry of `evaluation.data` is measured, or those named by `--data-entry`, the same on any number of processes. Of
labeled images `--report DIR` also writes how each class fares, with images of the pairs that are confused most, and
`--save-predictions DIR` a row for each image (DIR/<entry>/labels.csv).

With `--data davis --root DAVIS --predictions DIR` stored predictions are scored instead, without any network: masks
DIR/<sequence>/<frame>.png, of which whatever is not 0 is the object, masks of class ids DIR/<name>.png for a data set
with named classes, flow DIR/<name of the pair>.flo, in pixels of the truth's resolution, or a guess for each labeled
image in DIR/labels.csv. Names are the data set's own; `--save-predictions` writes such files. With `--objects` masks
number several objects and each is scored, by the rules of DAVIS 2017 (semi-supervised): the objects are those of a
sequence's first true mask, the first and the last frame do not count and need not be predicted, and the values of all
are means over objects.

The table, the JSON and the CSV have the same numbers. Lengths are pixels; J, F, IoU and the shares of outliers are
fractions in [0, 1]; what was not measured is null (empty in the CSV), not 0.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from rich.console import Console

from data import DataConfig
from data.files.flow_formats import write_flo
from data.files.masks import write_mask
from data.predictions.labels_csv import Guess, guess_of, report_guesses, save_guesses
from data.predictions.score import DATASETS, held_out, score, truth_of
from data.video.davis import Davis
from models.pretrained.load_trained import load_trained
from mtsp.config import ConfigError, parse
from mtsp.distributed.accelerator import make_accelerator
from mtsp.evaluation.evaluate import evaluate
from mtsp.evaluation.scores import Scores, as_csv, joined, plain, scores_of, table, without_frames
from mtsp.files.atomic import write_atomically
from mtsp.files.progress import bar
from mtsp.training.checks import require_classes, require_whole_images
from mtsp.types import Batch, Examples, Outputs
from tools.build import AnyExperiment, at_least_one, read_experiment

_OF_NETWORK = ("config", "checkpoint", "data_entry", "report", "save_predictions")
_OF_STORED = ("data", "root", "resolution", "objects", "every_frame", "workers")
"""Options that mean something with a network only, or with stored predictions only."""


class Measured(NamedTuple):
    """What is reported: numbers for the JSON, and scores by data entry for CSV and tables."""

    values: dict[str, Any]
    entries: dict[str, list[Scores]]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code. A mistake is one `error:` line, and no scores are written then."""
    parser = _parser()
    arguments = parser.parse_intermixed_args(argv)
    wanted = ("config", "checkpoint") if arguments.predictions is None else ("data",)
    if missing := [f"--{name}" for name in wanted if getattr(arguments, name) is None]:
        parser.error(f"{' and '.join(missing)} missing: --config with --checkpoint, or --data with --predictions")
    unused = _OF_STORED if arguments.predictions is None else _OF_NETWORK
    if ignored := [f"--{name.replace('_', '-')}" for name in unused if getattr(arguments, name) is not None]:
        mode = "a trained network" if arguments.predictions is None else "stored predictions"
        parser.error(f"{' and '.join(ignored)} would be ignored when {mode} is measured; leave it out")
    try:
        if arguments.json is not None and arguments.json == arguments.csv:
            raise ValueError(f"{arguments.json}: --json and --csv cannot be the same file")
        for file in (arguments.json, arguments.csv):
            if file is not None and file.is_dir():
                raise ValueError(f"{file} is a folder; name a file in it")
            if file is not None and not file.absolute().parent.is_dir():
                raise ValueError(f"{file}: there is no folder {file.absolute().parent} to write it in")
        measured = _of_network(arguments) if arguments.predictions is None else _of_predictions(arguments)
        if measured is not None:
            _write(measured, arguments.json, arguments.csv)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _write(measured: Measured, json_file: Path | None, csv_file: Path | None) -> None:
    contents = {
        json_file: json.dumps(plain(measured.values), indent=2, allow_nan=False) + "\n",
        csv_file: as_csv(measured.entries),
    }
    for file, text in contents.items():
        if file is not None:
            write_atomically(file, text.encode())
    for name, scores in measured.entries.items():
        for one in scores:
            Console().print(table(one, name))
            if short := without_frames(one):
                listed = ", ".join(short[:10])
                print(
                    f"note: {name}: no frame counts of {len(short)} sequences, which are in no mean: {listed}; the "
                    "first and the last of each never do",
                    file=sys.stderr,
                )


def _of_predictions(arguments: argparse.Namespace) -> Measured:
    split, objects, every_frame = arguments.split, bool(arguments.objects), bool(arguments.every_frame)
    dataset = truth_of(arguments.data, arguments.root, split, arguments.resolution, arguments.settings, objects=objects)
    scores = score(dataset, arguments.predictions, arguments.workers, objects=objects, every_frame=every_frame)
    if not objects and isinstance(dataset, Davis) and (several := dataset.several_objects()):
        which = f"{len(several)} of {len(scores.values['per_sequence'])} sequences, as {several[0]}"
        print(f"note: several objects were scored as one in {which}; --objects scores each", file=sys.stderr)
    about: dict[str, Any] = {"data": arguments.data, "split": split or held_out(arguments.data)}
    about |= {"predictions": str(arguments.predictions)} | ({"every_frame": True} if every_frame else {})
    return Measured(about | scores.values, {arguments.data: [scores]})


def _of_network(arguments: argparse.Namespace) -> Measured | None:
    """Measure a checkpoint; None on all processes but the main one."""
    names = [name for name in arguments.data_entry or () if "=" not in name]
    changes = [*arguments.settings, *(change for change in arguments.data_entry or () if "=" in change)]
    experiment = read_experiment(arguments.config, changes)
    entries = chosen_entries(experiment, names, arguments.split)
    saved = arguments.save_predictions
    if saved is not None and saved.exists() and (not saved.is_dir() or any(saved.iterdir())):
        raise ValueError(f"{saved} holds something already; predictions are saved in an empty folder")
    examples = {name: entry.build() for name, entry in entries.items()}
    require_classes(experiment, examples)
    require_whole_images(experiment, entries)
    model = load_trained(experiment, arguments.checkpoint)
    accelerator = make_accelerator(experiment.train.precision)
    if experiment.train.channels_last:
        model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    model = accelerator.prepare_model(model, evaluation_mode=True)
    accelerator.wait_for_everyone()  # all have seen the folder empty before anyone writes to it
    scores = {}
    for name, data in examples.items():
        folder = saved / name if saved is not None else None
        scores[name] = _measured(experiment, accelerator, model, name, data, folder, arguments.report)
    main_process = accelerator.is_main_process
    accelerator.wait_for_everyone()
    accelerator.end_training()
    about = {"config": str(arguments.config), "checkpoint": str(arguments.checkpoint)}
    tta = experiment.evaluation.tta.model_dump(mode="json")
    results = {
        name: {"data": entry.dataset.name, "split": getattr(entry.dataset, "split", None), "size": entry.size}
        | {"tta": tta}
        | joined(scores[name])
        for name, entry in entries.items()
    }
    return Measured(about | {"entries": results}, scores) if main_process else None


def chosen_entries(experiment: AnyExperiment, names: Sequence[str], split: str | None) -> dict[str, DataConfig]:
    """Return the data entries to measure: `names`, or without any those of `evaluation.data`.

    Args:
        experiment: which has them.
        names: of entries of `data`.
        split: of their data sets, in place of their own.

    Raises:
        ConfigError: an entry that is not there, or that has no such split, or nothing to measure.
    """
    names = names or experiment.evaluation.data
    if not names:
        raise ConfigError(f"evaluation.data is empty; name entries with --data-entry: {', '.join(experiment.data)}")
    if unknown := [name for name in names if name not in experiment.data]:
        raise ConfigError(f"there is no data entry {unknown[0]!r}; the config has {', '.join(experiment.data)}")
    return {name: _with_split(name, experiment.data[name], split) for name in names}


def _with_split(name: str, entry: DataConfig, split: str | None) -> DataConfig:
    if split is None:
        return entry
    if "split" not in type(entry.dataset).model_fields:
        raise ConfigError(f"data.{name}: {entry.dataset.name} has no splits; leave out --split")
    try:
        dataset = parse(type(entry.dataset), entry.dataset.model_dump(mode="json") | {"split": split})
    except ConfigError as error:
        raise ConfigError(f"data.{name}: {error}") from error
    return entry.model_copy(update={"dataset": dataset})


def _measured(
    experiment: AnyExperiment,
    accelerator: Accelerator,
    model: torch.nn.Module,
    name: str,
    data: Examples,
    folder: Path | None,
    report: Path | None,
) -> list[Scores]:
    """Measure one entry on all processes; store what was predicted in `folder`, and a report of labels in `report`."""
    guesses: list[Guess] = []
    mine = range(accelerator.process_index, len(data), accelerator.num_processes)
    with bar(f"measuring {name}", len(mine), shown=accelerator.is_main_process) as advance:

        def after_example(index: int, batch: Batch, outputs: Outputs) -> None:
            if folder is not None:
                _save(folder, batch, outputs)
            if "label" in batch and "label_logits" in outputs:
                guesses.append(guess_of(index, batch["name"][0], int(batch["label"][0]), outputs["label_logits"][0]))
            advance()

        measured = evaluate(
            accelerator,
            model,
            data,
            tta=experiment.evaluation.tta.build(),
            batch_size=experiment.evaluation.batch,
            workers=experiment.train.workers,
            channels_last=experiment.train.channels_last,
            after_example=after_example,
        )
    found = scores_of(measured, getattr(data, "classes", ()))
    if not found:
        raise ConfigError(f"data.{name}: nothing to measure: the data set has no label of what this network predicts")
    if measured.labels is not None and (report is not None or folder is not None):
        everyone = sorted(gather_object(guesses) if accelerator.num_processes > 1 else guesses)
        if accelerator.is_main_process and report is not None:
            report_guesses(report, name, data, measured.labels, everyone)
        if accelerator.is_main_process and folder is not None:
            save_guesses(folder, data, everyone)
    return found


def _save(folder: Path, batch: Batch, outputs: Outputs) -> None:
    path = folder / batch["name"][0]
    if "mask" in batch and "mask_logits" in outputs:
        path.parent.mkdir(parents=True, exist_ok=True)
        mask = outputs["mask_logits"][0].argmax(0).to(torch.uint8).cpu().numpy()
        write_mask(path.with_name(f"{path.name}.png"), mask)
    if "flow" in batch and "flow" in outputs:
        path.parent.mkdir(parents=True, exist_ok=True)
        flow = outputs["flow"][0].float().cpu().permute(1, 2, 0).numpy()
        write_flo(path.with_name(f"{path.name}.flo"), flow)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="evaluate.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    network = parser.add_argument_group("a trained network")
    network.add_argument("--config", help="its experiment; RUN/experiment.yaml is the one that was run")
    network.add_argument("--checkpoint", type=Path, help="RUN/weights.safetensors or RUN/checkpoints/step-...")
    network.add_argument("--data-entry", nargs="+", action="extend", metavar="NAME", help="entries of data to measure")
    network.add_argument("--report", type=Path, metavar="DIR", help="of labels: a table of classes, the confused pairs")
    network.add_argument("--save-predictions", type=Path, metavar="DIR", help="store them in DIR/<entry>, to be scored")
    stored = parser.add_argument_group("stored predictions")
    stored.add_argument("--predictions", type=Path, help="folder of <name>.png masks or <name>.flo flow, or labels.csv")
    stored.add_argument("--data", choices=sorted(DATASETS), help="whose labels are the truth")
    stored.add_argument("--root", type=Path, help="where that data set is")
    stored.add_argument("--resolution", help="of DAVIS, the folder below Annotations (default: 480p)")
    stored.add_argument("--objects", action="store_true", default=None, help="of videos, J and F of each object: 2017")
    stored.add_argument(
        "--every-frame", action="store_true", default=None, help="of videos, count the first and the last frame, too"
    )
    stored.add_argument(
        "--workers", type=at_least_one, help="threads that read files (default: one for each processor)"
    )
    parser.add_argument(
        "--split", help="which part of the data (default: the config's; of stored predictions val or test)"
    )
    parser.add_argument("--json", type=Path, help="write every number, of every sequence, to this file")
    parser.add_argument("--csv", type=Path, help="write the tables to this file")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="changes of the config, or of the data set")
    return parser


if __name__ == "__main__":
    sys.exit(main())
