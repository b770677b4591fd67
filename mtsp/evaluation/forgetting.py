"""Measure what fine-tuning forgets: the source task, solved by the fine-tuned branches under their old head."""

import csv
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from mtsp.config import Config, ConfigError
from mtsp.evaluation.classes import class_names
from mtsp.evaluation.evaluate import Evaluation
from mtsp.evaluation.metrics_by_kind import lower_is_better
from mtsp.methods.wise_ft import interpolated
from mtsp.types import Examples

Evaluate = Callable[[nn.Module, Examples], Evaluation]


class SourceConfig(Config):
    """The task that the pretrained branches could solve before fine-tuning."""

    data: str
    """Entry of `data` with labeled samples of the source task; its labels keep their own order."""
    heads: dict[str, str] = Field(default={})
    """Weights of the branches that fine-tuning replaces, by branch: `{head: mobilenetv2.safetensors}`. All other
    branches are measured as they are fine-tuned. Empty: the fine-tuned network still has its old head, as for flow."""
    classes: int | None = Field(default=None, gt=1)
    """Number of classes of the source task; null: that of the network."""
    fractions: tuple[Annotated[float, Field(ge=0, le=1)], ...] = ()
    """At the end, also measure the source and the evaluated data between the pretrained (0) and the fine-tuned weights
    (1), as in WiSE-FT, and write `forgetting.csv`."""


class SourceTask:
    """The source task of a run: its samples, and a network with the old head that borrows the fine-tuned branches.

    Args:
        config: which branches keep the old weights.
        network: the network of the source task with all its pretrained weights, on the device.
        examples: samples of the source task.
        branches: names of the network's branches.
        evaluate: evaluates a network on samples.
        measure_start: measure the source task before fine-tuning, for the share that is retained.

    Raises:
        ConfigError: the samples have another number of classes than the old head.
    """

    def __init__(
        self,
        config: SourceConfig,
        network: nn.Module,
        examples: Examples,
        *,
        branches: Sequence[str],
        evaluate: Evaluate,
        measure_start: bool = True,
    ) -> None:
        found = len(class_names(examples))
        if config.classes is not None and found and found != config.classes:
            raise ConfigError(f"evaluation.source.classes is {config.classes}, but data.{config.data} has {found}")
        self.config, self.network, self.examples = config, network, examples
        self.shared = tuple(branch for branch in branches if branch not in config.heads)
        self._evaluate = evaluate
        self.initial = {name: value.detach().clone() for name, value in self._borrowed(network).items()}
        """Pretrained weights and buffers of the shared branches."""
        self.start = evaluate(network, examples) if measure_start else None
        """The source task before fine-tuning; None if it is not measured."""

    def measure(self, model: nn.Module) -> Evaluation:
        """Return the metrics of the source task with the shared branches of `model`, and the share that is retained.

        `retained` is the first headline, such as top1, as a fraction of its value at the start; for errors, the start
        as a fraction of its value now. It is missing if the start is unknown, and NaN if it is 0.
        """
        self.network.load_state_dict(self._borrowed(model), strict=False)
        now = self._evaluate(self.network, self.examples)
        if self.start is None:
            return now
        name = now.metrics[0].headlines[0]
        then, here = (one.values().get(name, math.nan) for one in (self.start, now))
        if lower_is_better(name):
            then, here = here, then
        return now._replace(derived={"retained": here / then if then else math.nan})

    def between(self, model: nn.Module, fractions: Sequence[float]) -> Iterator[tuple[float, Evaluation]]:
        """Set the shared branches of `model` to each fraction of the way to their present weights, and yield it with
        the metrics of the source task there; at the end, restore the weights."""
        present = {name: value.detach().clone() for name, value in self._borrowed(model).items()}
        try:
            for fraction in fractions:
                model.load_state_dict(interpolated(self.initial, present, fraction), strict=False)
                yield fraction, self.measure(model)
        finally:
            model.load_state_dict(present, strict=False)

    def _borrowed(self, model: nn.Module) -> dict[str, Tensor]:
        return {name: value for name, value in model.state_dict().items() if name.partition(".")[0] in self.shared}


def as_csv(curve: Mapping[float, Mapping[str, float]]) -> str:
    """Return a CSV with a row for each fraction of the way from the pretrained to the fine-tuned weights."""
    text = io.StringIO()
    columns = list(dict.fromkeys(name for values in curve.values() for name in values))
    rows = csv.DictWriter(text, ["fraction", *columns], lineterminator="\n")
    rows.writeheader()
    rows.writerows({"fraction": fraction, **values} for fraction, values in curve.items())
    return text.getvalue()
