"""Open the data of an experiment, and report all missing files at once."""

from collections.abc import Collection, Sequence
from pathlib import Path

from mtsp.config import ConfigError
from mtsp.training.experiment import AnyExperiment
from mtsp.types import Examples


def open_data(experiment: AnyExperiment, names: Collection[str], problems: Sequence[str] = ()) -> dict[str, Examples]:
    """Return data entries of the experiment after checking that their files exist.

    Nothing is decoded, so that all missing files are told at once, before anything that takes long.

    Args:
        experiment: the resolved config.
        names: names of the entries.
        problems: lines about other missing files, such as weights.

    Raises:
        ConfigError: files of any entry are missing, or there are `problems`: a line for each.
    """
    data: dict[str, Examples] = {}
    found = list(problems)
    for name in (name for name in experiment.data if name in names):
        try:
            data[name] = experiment.data[name].build()
        except (ValueError, OSError) as error:
            found.append(f"data.{name}: {error}")
    if found:
        raise ConfigError("\n".join(found))
    return data


def missing_fisher(experiment: AnyExperiment) -> list[str]:
    """Return a line if the regularizer's file of Fisher information is missing."""
    file = getattr(experiment.regularizer, "fisher", None)
    if file is None or Path(file).is_file():
        return []
    hint = f"write it with python tools/fisher.py --config THIS --out {file}"
    return [f"regularizer.fisher: no file {Path(file).absolute()}; {hint}"]
