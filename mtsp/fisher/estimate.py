"""Diagonal Fisher information: how much each pretrained weight matters to the network's own predictions.

After Li, Grandvalet and Davoine, "Explicit inductive bias for transfer learning with convolutional networks", ICML
2018, section 3 (L2-SP-Fisher). Each observation's gradient is squared separately: squaring the mean gradient of a
batch, as many programs do, shrinks the result by about the batch size near an optimum.
"""

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from mtsp.anchors import fingerprint, known_name, named_weights, penalized
from mtsp.batches import evaluating
from mtsp.files.tensors import read_tensors, write_tensors
from mtsp.fisher.gradients import Observed, at_least_float32, looped, vectorized
from mtsp.fisher.inputs import Labels, Reader, inputs_of, logits_of, targets_of

Fisher = dict[str, Tensor]
"""Fisher information of each entry of each weight, by parameter name; not below 0."""
_LOG = logging.getLogger("mtsp")


def diagonal_fisher(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    normalize: bool = True,
    progress: Callable[[int], None] | None = None,
    **options: Any,
) -> Fisher:
    """Return the diagonal Fisher information of each penalized weight, by name, in float32 or finer.

    Args:
        model: see :class:`FisherSum`, which also has the definition.
        batches: any loader; its batches are read once.
        normalize: divide by the mean over all entries of all returned tensors, so that their mean is 1 and a strength
            compares with that of L2-SP. The paper does not; without it the scale depends on K and on f's confidence.
        progress: called with the number of samples done, after each batch.
        options: labels, draws, names, inputs, logits, targets, ignore, chunk, vectorize, generator: see
            :class:`FisherSum`.

    Raises:
        ValueError: see :class:`FisherSum` and its methods; or there is no observation, or gradients were all zero or
            not finite.
    """
    sums = FisherSum(model, **options)
    for batch in batches:
        sums.add(batch)
        if progress is not None:
            progress(sums.samples)
    return sums.fisher(normalize=normalize)


class FisherSum:
    """Running sums of the diagonal Fisher information: they can be saved, resumed, and added over processes.

    F_j is the mean over observations i of the expectation over labels k of (d log f_k(x_i) / d w_j)^2 at the current
    weights, where f is the softmax of the logits. An image is one observation for BK logits, a pixel for BKHW logits
    (labels of pixels are independent given the image), so that large images count more than small ones.

    - `exact`: the expectation is taken over all K classes, of every pixel, weighted by f. One backward pass for each
      class of each pixel: for dense logits only at a small size.
    - `sampled`: labels are drawn from f, for all pixels of an image at once, `draws` times. An unbiased estimate of
      `exact` with one backward pass per draw.
    - `empirical`: the data's labels. Not an estimate of the others, unless the model is right about its data. For dense
      logits the gradient of the sum over an image is squared, cross terms of its pixels included.

    The model is in eval mode during this: dropout would add noise, and batch normalization in training mode makes one
    sample's gradient depend on the others. Samples are computed one by one; a layer that mixes samples even in eval
    mode sees batches of one. Memory: `chunk` gradients, and the running sums in float64.

    Attributes:
        samples: number of samples added.
        observations: number of observations added; for dense logits, of pixels that count.

    Args:
        model: the bare network (not wrapped by DDP or FSDP), on the device of its inputs.
        labels: see above.
        draws: number of `sampled` labels per sample.
        names: parameters to use instead of those of :func:`mtsp.anchors.penalized`.
        inputs: returns the model's arguments for a batch: a tensor, a tuple, or a dict of keyword arguments; the first
            dimension of every tensor is the sample. Default: the batch itself if it is a tensor, the first of a tuple
            or list, all but `labels` of a dict.
        logits: returns BK or BK... logits from the model's output. Default: the output itself, or its `logits`.
        targets: returns the labels of a batch, B or B...; needed for `empirical`, and for dense logits to leave out
            unknown pixels. Default: the second of a tuple or list, `labels` of a dict; without any, all pixels count.
        ignore: label of pixels that do not count, for dense logits.
        chunk: number of gradients in memory at once, each as large as the penalized weights together.
        vectorize: batch the gradients with `torch.func.vmap`. A model that it does not support (control flow on
            values, operators without a batching rule) is computed in a loop, and the log says so.
        generator: random generator of the sampled labels.

    Raises:
        ValueError: `labels` is none of the three, `draws` or `chunk` is below 1, a name is not in the model, or there
            is no weight to use.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        labels: Labels = "exact",
        draws: int = 1,
        names: Iterable[str] | None = None,
        inputs: Callable[[Any], Any] | None = None,
        logits: Callable[[Any], Tensor] | None = None,
        targets: Callable[[Any], Tensor | None] | None = None,
        ignore: int = 255,
        chunk: int = 16,
        vectorize: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        if labels not in get_args(Labels):
            raise ValueError(f"labels must be {', '.join(get_args(Labels))}, got {labels!r}")
        if chunk < 1 or draws < 1:
            raise ValueError(f"chunk and draws must be at least 1, got {chunk} and {draws}")
        self.model: nn.Module = getattr(model, "_orig_mod", model)
        self.samples = self.observations = 0
        self._weights = _weights(self.model, names)
        self._total = {name: torch.zeros_like(w, dtype=torch.float64) for name, w in self._weights.items()}
        read = (inputs or inputs_of, logits or logits_of, targets or targets_of)
        self._reader = Reader(*read, labels, draws, ignore, generator)
        self._chunk, self._vectorize = chunk, vectorize
        self._draws = draws if labels == "sampled" else 1

    def add(self, batch: Any) -> None:
        """Add a batch; a batch that fails adds nothing.

        Raises:
            ValueError: labels are missing or out of range, or the model gives no logits.
        """
        with evaluating(self.model):
            observed = self._reader.read(self.model, batch)
            sums = self._squared(observed)
        for name, value in sums.items():
            self._total[name] += value
        self.samples += len(observed.valid)
        self.observations += int(observed.valid.sum())

    def fisher(self, *, normalize: bool = True) -> Fisher:
        """Return the mean over the observations so far, divided by its mean over all entries if `normalize`.

        Raises:
            ValueError: there is no observation, or gradients were all zero or not finite.
        """
        if self.observations == 0:
            raise ValueError(
                f"none of the {self.samples} samples has a labeled pixel; check the loader, `targets` and `ignore`"
            )
        runs, plain = self.observations * self._draws, _plain_names(self.model)
        fisher = {
            plain[n]: (total / runs).to(at_least_float32(self._weights[n].dtype)) for n, total in self._total.items()
        }
        if wrong := [name for name, value in fisher.items() if not bool(value.isfinite().all())]:
            raise ValueError(f"the Fisher information of {wrong[0]} has values that are NaN or infinite")
        return mean_one(fisher) if normalize else fisher

    def state_dict(self) -> dict[str, Tensor]:
        """Return the sums; the sums of several processes can be added."""
        counts = {"samples": torch.tensor(self.samples), "observations": torch.tensor(self.observations)}
        return {f"total.{name}": value for name, value in self._total.items()} | counts

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from sums that :meth:`state_dict` returned.

        Raises:
            ValueError: they belong to other weights, by name or shape. Nothing is loaded then.
        """
        given = {name.removeprefix("total."): value for name, value in state.items() if name.startswith("total.")}
        for name in {**self._total, **given}:
            pair = (self._total.get(name), given.get(name))
            ours, theirs = ("not there" if value is None else f"of shape {tuple(value.shape)}" for value in pair)
            if ours != theirs:
                raise ValueError(
                    f"these sums belong to other weights: {name} is {theirs} in them, {ours} in this model"
                )
        self._total = {name: state[f"total.{name}"].to(value) for name, value in self._total.items()}
        self.samples, self.observations = int(state["samples"]), int(state["observations"])

    def _squared(self, observed: Observed) -> Fisher:
        held = {name: weight.detach() for name, weight in self._weights.items()}
        if self._vectorize:
            try:
                return vectorized(self.model, held, observed, self._chunk)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, ValueError) as error:
                reason = str(error).splitlines()[0]
                _LOG.info("computing the Fisher information sample by sample, which is slower: %s", reason)
                self._vectorize = False
        return looped(self.model, held, observed)


def mean_one(fisher: Mapping[str, Tensor]) -> Fisher:
    """Return the values divided by their mean over all entries of all tensors.

    Raises:
        ValueError: the mean is zero or not finite.
    """
    entries = sum(value.numel() for value in fisher.values())
    mean = sum(float(value.double().sum()) for value in fisher.values()) / max(1, entries)
    if not 0 < mean < float("inf"):
        raise ValueError(f"the Fisher information has mean {mean} and cannot be normalized; are the logits constant?")
    return {name: value / mean for name, value in fisher.items()}


def save_fisher(
    path: Path, fisher: Mapping[str, Tensor], *, anchors: Mapping[str, Tensor] | None = None, **notes: str
) -> None:
    """Write the values as safetensors.

    Args:
        path: the file, written atomically.
        fisher: by parameter name.
        anchors: the weights it was estimated at; their hashes are saved, and experiments check them.
        notes: more metadata, such as the data and the labels used.

    Raises:
        OSError: the file could not be written.
    """
    hashes = {} if anchors is None else {"anchors": json.dumps({name: _hash(value) for name, value in anchors.items()})}
    write_tensors(path, fisher, {"mtsp": "fisher", **hashes, **notes})


def load_fisher(path: Path) -> Fisher:
    """Return the values that :func:`save_fisher` wrote, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not safetensors, or not from :func:`save_fisher`.
    """
    return _read(path)[0]


def fisher_of(path: Path, anchors: Mapping[str, Tensor]) -> Fisher:
    """Return a file's values for the weights that have an anchor, scaled to mean 1.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not from :func:`save_fisher`, does not say at which weights it was estimated, lacks
            one of the weights, or was estimated at other values.
    """
    values, notes = _read(path)
    if "anchors" not in notes:
        raise ValueError(f"{path} does not say at which weights it was estimated; tools/fisher.py writes one that does")
    estimated = json.loads(notes["anchors"])
    wrong = [name for name in anchors if name not in values or name not in estimated]
    problem = "has no Fisher information of some pretrained weights"
    if not wrong:
        wrong = [name for name, value in anchors.items() if estimated[name] != _hash(value)]
        problem = "was estimated at other weights than the branches start from"
    if wrong:
        raise ValueError(
            f"{path} {problem}: {len(wrong)} of {len(anchors)}, the first {wrong[0]}; estimate it with tools/fisher.py "
            "and this config"
        )
    return mean_one({name: values[name] for name in anchors})


def _read(path: Path) -> tuple[Fisher, Mapping[str, str]]:
    instead = "estimate it with tools/fisher.py, or write it with save_fisher"
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; {instead}")
    values, notes = read_tensors(path)
    if notes.get("mtsp") != "fisher":
        raise ValueError(f"{path} does not hold Fisher information; {instead}")
    return values, notes


def _hash(weight: Tensor) -> str:
    return fingerprint({"": weight})[:16]


def _weights(model: nn.Module, names: Iterable[str] | None) -> dict[str, nn.Parameter]:
    raw = {plain: name for name, plain in _plain_names(model).items()}
    own = {plain: (raw[plain], weight) for plain, weight in named_weights(model).items()}
    wanted = [known_name(name, own) for name in (penalized(model) if names is None else names)]
    if unknown := [name for name in wanted if name not in own]:
        raise ValueError(
            f"the model has no parameter {unknown[0]!r}; its parameters are named like {next(iter(own), 'none')!r}"
        )
    if not wanted:
        raise ValueError("the model has no convolution or linear layer; name the parameters to use with `names`")
    return dict(own[name] for name in wanted)


def _plain_names(model: nn.Module) -> dict[str, str]:
    """Plain name for each of the model's parameter names."""
    return dict(zip((name for name, _ in model.named_parameters()), named_weights(model), strict=True))
