"""Measure what fine-tuning forgets: the source task, solved by the fine-tuned branches under their old head."""

import csv
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Generic, TypeVar

from pydantic import Field, model_validator
from torch import Tensor, nn

from mtsp.config import Config, ConfigError
from mtsp.evaluation.classes import class_names
from mtsp.evaluation.evaluate import Evaluation
from mtsp.evaluation.metrics_by_kind import lower_is_better
from mtsp.methods.wise_ft import interpolated
from mtsp.types import Examples

Evaluate = Callable[[nn.Module, Examples], Evaluation]
ModelT = TypeVar("ModelT", bound=Config)


class SourceConfig(Config, Generic[ModelT]):
    """The task that the pretrained branches could solve before fine-tuning."""

    data: str
    """Entry of `data` with labeled samples of the source task; its labels keep their own order."""
    heads: dict[str, str] = Field(default={})
    """Weights of the branches that fine-tuning replaces, by branch: `{head: mobilenetv2.safetensors}`. All other
    branches are measured as they are fine-tuned. Empty: the fine-tuned network still has its old head, as for flow."""
    classes: int | None = Field(default=None, gt=1)
    """Number of classes of the source task; null: that of the network."""
    model: ModelT | None = None
    """Network of the source task, if it is another than that of the run: the classifier that an encoder comes from.
    `heads` then has the weights of all its branches. Null: the network of the run, with its old heads."""
    shared: dict[str, str] = Field(default={})
    """With `model`: modules of the fine-tuned network, and the modules of the source network that are measured with
    their weights: `{backbone.encoder.model: backbone.network}`. All others keep the old weights."""
    fractions: tuple[Annotated[float, Field(ge=0, le=1)], ...] = ()
    """At the end, also measure the source and the evaluated data between the pretrained (0) and the fine-tuned weights
    (1), as in WiSE-FT, and write `forgetting.csv`."""

    @model_validator(mode="after")
    def _another_network_says_what_it_shares(self) -> "SourceConfig[ModelT]":
        if (self.model is None) != (not self.shared):
            raise ValueError("`model` and `shared` need each other; set both, or leave both out")
        if self.model is not None and self.classes is not None:
            raise ValueError("`classes` is for the network of the run; set `model.classes`, and leave out `classes`")
        return self


def shared_tensors(
    config: SourceConfig[Any], model: nn.Module, network: nn.Module, branches: Sequence[str]
) -> dict[str, str]:
    """Return what the source network borrows: its tensors by the names of the same tensors in the fine-tuned `model`.

    Raises:
        ConfigError: a shared module is missing in one of the networks, or is another there.
    """
    modules = config.shared or {name: name for name in branches if name not in config.heads}
    own, old = model.state_dict(), network.state_dict()
    found: dict[str, str] = {}
    for ours, theirs in modules.items():
        names = {name: theirs + name.removeprefix(ours) for name in own if name.startswith(f"{ours}.")}
        odd = [name for name, other in names.items() if other not in old or old[other].shape != own[name].shape]
        if odd or not names:
            raise ConfigError(
                f"evaluation.source: {ours} of the fine-tuned network does not fit {theirs} of the source network "
                f"({odd[0] if odd else 'it has no weights'}); name the same module of both in `shared`"
            )
        found |= names
    return found


class SourceTask:
    """The source task of a run: its samples, and a network with the old head that borrows the fine-tuned branches.

    Args:
        config: the source task.
        network: the network of the source task with all its pretrained weights, on the device.
        examples: samples of the source task.
        shared: tensors that it borrows from the fine-tuned network, see :func:`shared_tensors`.
        evaluate: evaluates a network on samples.
        measure_start: measure the source task before fine-tuning, for the share that is retained.

    Raises:
        ConfigError: the samples have another number of classes than the old head.
    """

    def __init__(
        self,
        config: SourceConfig[Any],
        network: nn.Module,
        examples: Examples,
        *,
        shared: Mapping[str, str],
        evaluate: Evaluate,
        measure_start: bool = True,
    ) -> None:
        found = len(class_names(examples))
        classes = config.classes if config.model is None else getattr(config.model, "classes", None)
        if classes is not None and found and found != classes:
            key = "classes" if config.model is None else "model.classes"
            raise ConfigError(f"evaluation.source.{key} is {classes}, but data.{config.data} has {found}")
        self.config, self.network, self.examples, self.shared = config, network, examples, dict(shared)
        self._evaluate = evaluate
        old = network.state_dict()
        self.initial = {name: old[other].detach().clone() for name, other in self.shared.items()}
        """Pretrained weights and buffers that are shared, by their names in the fine-tuned network."""
        self.start = evaluate(network, examples) if measure_start else None
        """The source task before fine-tuning; None if it is not measured."""

    def measure(self, model: nn.Module) -> Evaluation:
        """Return the metrics of the source task with the shared weights of `model`, and the share that is retained.

        `retained` is the first headline, such as top1, as a fraction of its value at the start; for errors, the start
        as a fraction of its value now. It is missing if the start is unknown, and NaN if it is 0.
        """
        borrowed = {self.shared[name]: value for name, value in self._of(model).items()}
        self.network.load_state_dict(borrowed, strict=False)
        now = self._evaluate(self.network, self.examples)
        if self.start is None:
            return now
        name = now.metrics[0].headlines[0]
        then, here = (one.values().get(name, math.nan) for one in (self.start, now))
        if lower_is_better(name):
            then, here = here, then
        return now._replace(derived={"retained": here / then if then else math.nan})

    def between(self, model: nn.Module, fractions: Sequence[float]) -> Iterator[tuple[float, Evaluation]]:
        """Set the shared weights of `model` to each fraction of the way to their present weights, and yield it with
        the metrics of the source task there; at the end, restore the weights."""
        present = {name: value.detach().clone() for name, value in self._of(model).items()}
        try:
            for fraction in fractions:
                model.load_state_dict(interpolated(self.initial, present, fraction), strict=False)
                yield fraction, self.measure(model)
        finally:
            model.load_state_dict(present, strict=False)

    def _of(self, model: nn.Module) -> dict[str, Tensor]:
        return {name: value for name, value in model.state_dict().items() if name in self.shared}


def as_csv(curve: Mapping[float, Mapping[str, float]]) -> str:
    """Return a CSV with a row for each fraction of the way from the pretrained to the fine-tuned weights."""
    text = io.StringIO()
    columns = list(dict.fromkeys(name for values in curve.values() for name in values))
    rows = csv.DictWriter(text, ["fraction", *columns], lineterminator="\n")
    rows.writeheader()
    rows.writerows({"fraction": fraction, **values} for fraction, values in curve.items())
    return text.getvalue()
