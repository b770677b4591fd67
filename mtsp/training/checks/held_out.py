"""Notice entries to evaluate whose samples are trained on, too."""

from collections.abc import Mapping

import torch

from mtsp.indices import evenly_spaced
from mtsp.training.experiment import AnyExperiment
from mtsp.types import Batch, Examples

SAMPLES = 12
"""Number of samples of an entry that are looked for in the entries trained on."""


def trained_on(experiment: AnyExperiment, data: Mapping[str, Examples]) -> list[str]:
    """Return a line for each entry to evaluate that holds training samples: of the same name, frame and labels."""
    lines: list[str] = []
    trained = {name: data[name] for name in experiment.train.entries if name in data}
    places = {name: {id_: i for i, id_ in enumerate(getattr(one, "ids", ()))} for name, one in trained.items()}
    for name in (name for name in experiment.evaluation.data if name in data and name not in trained):
        ids = getattr(data[name], "ids", ())
        looked = evenly_spaced(len(ids), SAMPLES)
        for other, examples in trained.items():
            shared = [i for i in looked if ids[i] in places[other]]
            same = [i for i in shared if _same(data[name][i], examples[places[other][ids[i]]])]
            if same:
                lines.append(
                    f"{len(same)} of {len(looked)} checked samples of data.{name} are trained on, too, in "
                    f"data.{other}, such as {ids[same[0]]}"
                )
    return lines


def _same(one: Batch, other: Batch) -> bool:
    pairs = ((one.get(key), other.get(key)) for key in ("frame", "mask", "flow", "label"))
    return all(a is None or b is None or torch.equal(a, b) for a, b in pairs)
