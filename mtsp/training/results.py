"""Write the results of a run at its end."""

import json
import logging
import math
from collections.abc import Mapping

from mtsp.anchors import fingerprint, relative_distances
from mtsp.distributed.sharding import full_states
from mtsp.evaluation.classes import class_names
from mtsp.evaluation.evaluate import Evaluation
from mtsp.evaluation.scores import joined, plain, scores_of
from mtsp.files.atomic_file import write_atomically
from mtsp.files.tensors import write_tensors
from mtsp.training.state import TrainingRun

_LOG = logging.getLogger("mtsp")


def write_results(run: TrainingRun, validation: Mapping[str, Evaluation]) -> dict[str, dict[str, float]]:
    """Write the final weights, their metrics, and distance and pull of each layer; return the metrics.

    Call it on all processes: weights may be sharded.
    """
    accelerator = run.state.accelerator
    results = {name: evaluation.values() for name, evaluation in validation.items()}
    details = {
        name: joined(scores_of(evaluation.metrics, class_names(run.data[name]) if name in run.data else ()))
        for name, evaluation in validation.items()
    }
    ends = {"distance": dict[str, float](), "pull_to_gradient": _pulls(run)}
    with run.ema_weights():
        weights, _ = full_states(run.network, run.state.optimizer.optimizer)
        if accelerator.is_main_process:
            anchors = run.pretrained.anchors
            notes = {"anchor": fingerprint(anchors)} if anchors else {}
            notes |= {"classes": json.dumps(run.classes)} if run.classes else {}
            write_tensors(run.folder / "weights.safetensors", weights, notes)
            ends["distance"] = relative_distances(weights, anchors)
            layers = {name: {key: end[name] for key, end in ends.items() if name in end} for name in weights}
            layers = {name: values for name, values in layers.items() if values}
            write_atomically(run.folder / "layers.json", json.dumps(layers, indent=1).encode())
            write_atomically(run.folder / "evaluation.json", json.dumps({"entries": plain(details)}, indent=1).encode())
    if accelerator.is_main_process:
        write_atomically(run.folder / "results.json", json.dumps(results, indent=1).encode())
        _LOG.info("done: %d steps; weights, curves and figures are in %s", run.position.step, run.folder)
    return results


def _pulls(run: TrainingRun) -> dict[str, float]:
    """Return the last measured ratio of pull and gradient by weight. On every process: weights may be sharded."""
    if run.regularizer is None:
        return {}
    reports = run.regularizer.report(run.regularizer.targets)
    return {name: one.pull_to_gradient for name, one in reports.items() if math.isfinite(one.pull_to_gradient)}
