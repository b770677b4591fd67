"""Evaluate a trained network: `python tools/evaluate.py --config RUN/experiment.yaml --checkpoint RUN/...`.

`--checkpoint` is RUN/weights.safetensors or RUN/checkpoints/step-...; key=value overrides config values, as in
training. The program evaluates each entry of `evaluation.data`, or the entries named by `--entry`. Results do not
depend on the number of processes. `--save-predictions DIR` writes predictions to DIR/<entry>, as files that
tools/score.py reads. For labeled images, `--report DIR` writes the accuracy of each class and examples of the pairs of
classes that are confused most.

The table, the JSON and the CSV have the same values. Lengths are in pixels; J, F, IoU and outlier rates are fractions
in [0, 1]. A value that was not measured is null (empty in the CSV), not 0.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before installed packages called tools, models or data

from mtsp.command_line import program, require_empty

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from data import DataConfig
    from mtsp.evaluation.scores import Scores
    from mtsp.types import Batch, Examples, Outputs
    from tools.build import AnyExperiment


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    arguments = _parser().parse_intermixed_args(argv)
    from mtsp.evaluation.scores import require_writable, show

    require_writable(arguments.json, arguments.csv)
    if (measured := _measure(arguments)) is not None:
        show(*measured, arguments.json, arguments.csv)
    return 0


def _measure(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, list["Scores"]]] | None:
    """Evaluate a checkpoint; return the values for the JSON and the scores by entry, on the main process only."""

    from models.pretrained.load_trained import load_trained, trained_classes
    from mtsp.batches import in_channels_last
    from mtsp.distributed.accelerator import make_accelerator
    from mtsp.evaluation.classes import align
    from mtsp.evaluation.scores import joined
    from mtsp.training.checks.classes import align_classes
    from mtsp.training.checks.frame_sizes import require_whole_images
    from tools.build import read_experiment

    names = [name for name in arguments.entry or () if "=" not in name]
    changes = [*arguments.settings, *(change for change in arguments.entry or () if "=" in change)]
    experiment = read_experiment(arguments.config, changes)
    entries = chosen_entries(experiment, names, arguments.split)
    saved = arguments.save_predictions
    if saved is not None:
        require_empty(saved, "--save-predictions")
    examples = {name: entry.build() for name, entry in entries.items()}
    require_whole_images(experiment, entries)
    model = load_trained(experiment, arguments.checkpoint)
    if classes := trained_classes(arguments.checkpoint):
        whose = f"the weights in {arguments.checkpoint}"
        examples = {name: align(f"data.{name}", found, classes, whose) for name, found in examples.items()}
    examples = align_classes(experiment, examples)
    accelerator = make_accelerator(experiment.train.precision)
    model = in_channels_last(model, experiment.train.channels_last)
    model = accelerator.prepare_model(model, evaluation_mode=True)
    accelerator.wait_for_everyone()  # every process must check for an empty folder before any process writes
    scores = {}
    for name, data in examples.items():
        folder = saved / name if saved is not None else None
        scores[name] = _measure_entry(experiment, accelerator, model, name, data, folder, arguments.report)
    main_process = accelerator.is_main_process
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if not main_process:
        return None
    tta, results = experiment.evaluation.tta.model_dump(mode="json"), {}
    for name, entry in entries.items():
        about = {"dataset": entry.dataset.name, "split": getattr(entry.dataset, "split", None), "size": entry.size}
        results[name] = about | {"tta": tta} | joined(scores[name])
    return {"config": str(arguments.config), "checkpoint": str(arguments.checkpoint), "entries": results}, scores


def chosen_entries(experiment: "AnyExperiment", names: Sequence[str], split: str | None) -> dict[str, "DataConfig"]:
    """Return the data entries to evaluate: `names`, or `evaluation.data` if `names` is empty.

    Args:
        experiment: the resolved config.
        names: names of entries in the config's `data`.
        split: split to evaluate; None uses the split in the config.

    Raises:
        ConfigError: an entry is unknown or does not have this split, or there is no entry to evaluate.
    """
    from mtsp.config import ConfigError, parse

    names = names or experiment.evaluation.data
    if not names:
        raise ConfigError(f"evaluation.data is empty; name entries with --entry: {', '.join(experiment.data)}")
    if unknown := [name for name in names if name not in experiment.data]:
        raise ConfigError(f"there is no data entry {unknown[0]!r}; the config has {', '.join(experiment.data)}")
    entries = {name: experiment.data[name] for name in names}
    for name, entry in entries.items() if split is not None else ():
        dataset = entry.dataset
        if "split" not in type(dataset).model_fields:
            raise ConfigError(f"data.{name}: {dataset.name} has no splits; leave out --split")
        try:
            dataset = parse(type(dataset), dataset.model_dump(mode="json") | {"split": split})
        except ConfigError as error:
            raise ConfigError(f"data.{name}: {error}") from error
        entries[name] = entry.model_copy(update={"dataset": dataset})
    return entries


def _measure_entry(
    experiment: "AnyExperiment",
    accelerator: "Accelerator",
    model: "torch.nn.Module",
    name: str,
    data: "Examples",
    folder: Path | None,
    report: Path | None,
) -> list["Scores"]:
    """Evaluate one entry on all processes; write predictions to `folder` and a classification report to `report`."""
    from accelerate.utils import gather_object

    from data.predictions.class_names import write_class_names
    from data.predictions.labels_csv import LabelPrediction, label_prediction, report_classes, save_predictions
    from mtsp.config import ConfigError
    from mtsp.evaluation.evaluate import evaluate
    from mtsp.evaluation.metrics_by_kind import ImageLabels
    from mtsp.evaluation.scores import require_known, scores_of
    from mtsp.files.progress import bar

    predictions: list[LabelPrediction] = []
    mine = range(accelerator.process_index, len(data), accelerator.num_processes)
    with bar(f"measuring {name}", len(mine), shown=accelerator.is_main_process) as advance:

        def after_example(index: int, batch: "Batch", outputs: "Outputs") -> None:
            if folder is not None:
                _save(folder, batch, outputs)
            if "label" in batch and "label_logits" in outputs:
                truth, logits = int(batch["label"][0]), outputs["label_logits"][0]
                predictions.append(label_prediction(index, batch["name"][0], truth, logits))
            advance()

        measured = evaluate(
            accelerator,
            model,
            data,
            tta=experiment.evaluation.tta.build(),
            batch_size=experiment.evaluation.batch_size,
            workers=experiment.train.worker_count(),
            channels_last=experiment.train.channels_last,
            after_example=after_example,
        )
    classes = getattr(data, "classes", ())
    if not measured.metrics:
        raise ConfigError(f"data.{name}: no metric applies: the data has no labels for this network's outputs")
    for label, unknown in measured.unknown.items():
        if accelerator.is_main_process or len(unknown) == len(data):
            require_known(f"{label} of data.{name}", unknown, len(data))
    labels = next((metric.scores for metric in measured.metrics if isinstance(metric, ImageLabels)), None)
    if labels is not None and (report is not None or folder is not None):
        everyone = sorted(gather_object(predictions) if accelerator.num_processes > 1 else predictions)
        if accelerator.is_main_process and report is not None:
            report_classes(report, name, data, labels, everyone)
        if accelerator.is_main_process and folder is not None:
            save_predictions(folder / "labels.csv", classes, everyone)
    if accelerator.is_main_process and folder is not None and classes:
        write_class_names(folder, classes)
    return scores_of(measured.metrics, classes)


def _save(folder: Path, batch: "Batch", outputs: "Outputs") -> None:
    from data.files.flow_formats.flo import write_flo
    from data.files.masks import byte_ids, write_mask

    path = folder / batch["name"][0]
    if {"mask_logits", "flow"} & outputs.keys():
        path.parent.mkdir(parents=True, exist_ok=True)
    if "mask" in batch and "mask_logits" in outputs:
        mask = byte_ids(outputs["mask_logits"][0].max(0).indices.cpu().numpy())
        write_mask(path.with_name(f"{path.name}.png"), mask)
    if "flow" in batch and "flow" in outputs:
        flow = outputs["flow"][0].float().cpu().permute(1, 2, 0).numpy()
        write_flo(path.with_name(f"{path.name}.flo"), flow)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="evaluate.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="experiment config, for example RUN/experiment.yaml")
    parser.add_argument("--checkpoint", type=Path, required=True, help="RUN/weights.safetensors or RUN/checkpoints/...")
    parser.add_argument(
        "--entry", nargs="+", action="extend", metavar="NAME", help="entries of the config's data to evaluate"
    )
    parser.add_argument("--split", help="split to evaluate (default: as in the config)")
    parser.add_argument("--report", type=Path, metavar="DIR", help="write class accuracies and confused pairs")
    parser.add_argument("--save-predictions", type=Path, metavar="DIR", help="write predictions to DIR/<entry>")
    parser.add_argument("--json", type=Path, help="JSON file for all values")
    parser.add_argument("--csv", type=Path, help="CSV file for the tables")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="config values to override")
    return parser


if __name__ == "__main__":
    sys.exit(main())
