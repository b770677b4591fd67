"""Estimate the diagonal Fisher information: how much each pretrained weight affects the network's predictions.

After Li, Grandvalet and Davoine, "Explicit inductive bias for transfer learning with convolutional networks", ICML
2018, section 3 (L2-SP-Fisher). The gradient of each observation is squared separately. Squaring the mean gradient
of a batch, as many programs do, makes the result too small near an optimum, by a factor of about the batch size.
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
"""Fisher information of each entry of each weight, by parameter name; 0 or more."""
_LOG = logging.getLogger("mtsp")


def diagonal_fisher(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    normalize: bool = True,
    progress: Callable[[int], None] | None = None,
    **options: Any,
) -> Fisher:
    """Return the diagonal Fisher information of each penalized weight by name, in float32 or float64.

    Args:
        model: see :class:`FisherSum`, which also defines the Fisher information.
        batches: batches of the training data, such as a DataLoader; iterated over once.
        normalize: divide by the mean over all entries of all returned tensors. The mean is then 1, and strengths are
            comparable with those of L2-SP. The paper does not normalize; the scale then depends on the number of
            classes and on the confidence of the predictions.
        progress: called after each batch with the number of samples processed so far.
        options: labels, draws, names, inputs, logits, targets, ignore, chunk, vectorize, generator: see
            :class:`FisherSum`.

    Raises:
        ValueError: see :class:`FisherSum` and its methods.
    """
    sums = FisherSum(model, **options)
    for batch in batches:
        sums.add(batch)
        if progress is not None:
            progress(sums.samples)
    return sums.fisher(normalize=normalize)


class FisherSum:
    """Running sums of the diagonal Fisher information, which can be saved, resumed, and added over processes.

    F_j is the mean over observations i of the expectation over labels k of (d log f_k(x_i) / d w_j)^2 at the current
    weights, where f is the softmax of the logits. For BK logits, each image is one observation. For BKHW logits, each
    pixel is one (labels of pixels are independent given the image), so larger images have a larger weight.

    - `exact`: take the expectation over all K classes of every pixel, weighted by f. This takes one backward pass per
      class and pixel, so for dense logits it is feasible only at a small image size.
    - `sampled`: draw labels from f for all pixels of an image at once, `draws` times. This is an unbiased estimate of
      `exact` with one backward pass per draw.
    - `empirical`: use the labels of the data set. This estimates `exact` only if the model predicts the true label
      distribution. For dense logits, the gradient of the sum over an image is squared, which includes cross terms
      between pixels.

    The model is put in eval mode meanwhile: dropout would add noise, and in training mode batch normalization makes the
    gradient of a sample depend on other samples. Gradients are computed per sample; a layer that mixes samples even in
    eval mode gets batches of one. Memory: `chunk` gradients, and the running sums in float64.

    Attributes:
        samples: number of samples added.
        observations: number of observations added; for dense logits, the number of pixels without the label `ignore`.

    Args:
        model: the network without DDP or FSDP wrappers, on the same device as the inputs.
        labels: source of the labels; see above.
        draws: number of label sets drawn per sample with `sampled`.
        names: names of the parameters to use. Default: those of :func:`mtsp.anchors.penalized`.
        inputs: function from a batch to the model's arguments: a tensor, a tuple, or a dict of keyword arguments. The
            first dimension of every tensor is the sample. Default: the batch if it is a tensor, the first element of a
            tuple or list, or a dict without its `labels`.
        logits: function from the model's output to BK or BK... logits. Default: the output or its `logits`.
        targets: function from a batch to its labels, B or B...; needed for `empirical`, and for dense logits to exclude
            unlabeled pixels. Default: the second element of a tuple or list, or the `labels` of a dict. If there are
            none, all pixels are used.
        ignore: label of pixels to exclude, for dense logits.
        chunk: number of gradients in memory at once; each is as large as all penalized weights together.
        vectorize: compute several gradients at once with `torch.func.vmap`. If it does not support the model (control
            flow that depends on values, operators without a batching rule), gradients are computed in a loop, and the
            log says so.
        generator: random generator for the sampled labels.

    Raises:
        ValueError: `labels` is not one of the three options, `draws` or `chunk` is below 1, a name is not in the model,
            or there is no weight to use.
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
        """Add a batch to the sums. If this raises an error, the sums do not change.

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
        """Return the mean over the observations so far; if `normalize`, it is scaled to a mean of 1 over all entries.

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
        """Return the sums as tensors, which can be added over processes."""
        counts = {"samples": torch.tensor(self.samples), "observations": torch.tensor(self.observations)}
        return {f"total.{name}": value for name, value in self._total.items()} | counts

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load the sums returned by :meth:`state_dict`.

        Raises:
            ValueError: the sums are of weights with other names or shapes. Nothing is loaded in this case.
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
    """Write Fisher information to a safetensors file.

    Args:
        path: file to write, atomically.
        fisher: Fisher information by parameter name.
        anchors: weights at which the Fisher information was estimated. Their hashes are saved and checked in training.
        notes: further metadata, such as the data and the source of labels.

    Raises:
        OSError: the file could not be written.
    """
    hashes = {} if anchors is None else {"anchors": json.dumps({name: _hash(value) for name, value in anchors.items()})}
    write_tensors(path, fisher, {"mtsp": "fisher", **hashes, **notes})


def load_fisher(path: Path) -> Fisher:
    """Return the Fisher information from a file written by :func:`save_fisher`, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not safetensors, or not from :func:`save_fisher`.
    """
    return _read(path)[0]


def fisher_of(path: Path, anchors: Mapping[str, Tensor]) -> Fisher:
    """Return the Fisher information of the weights that have an anchor from a file, scaled to mean 1.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file was not written by :func:`save_fisher`, has no hashes of the weights at which it was
            estimated, lacks a weight, or was estimated at other values of the weights.
    """
    values, notes = _read(path)
    if "anchors" not in notes:
        raise ValueError(f"{path} does not say at which weights it was estimated; create it with tools/fisher.py")
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
    """Map each of the model's parameter names to its plain name."""
    return dict(zip((name for name, _ in model.named_parameters()), named_weights(model), strict=True))
