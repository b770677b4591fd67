"""The diagonal of the Fisher information: how much each pretrained weight matters to the network's own predictions.

After Li, Grandvalet and Davoine, "Explicit inductive bias for transfer learning with convolutional networks", ICML
2018, section 3 (L2-SP-Fisher). Every observation's gradient is squared by itself: squaring the mean gradient of a
batch, as many programs do, shrinks the result by about the batch size near an optimum.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from mtsp.anchors import known_name, named_weights, penalized
from mtsp.squared_gradients import Arguments, Observed, at_least_float32, looped, vectorized

Labels = Literal["exact", "sampled", "empirical"]
Fisher = dict[str, Tensor]
_LOG = logging.getLogger("mtsp")


def diagonal_fisher(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    labels: Labels = "exact",
    draws: int = 1,
    normalize: bool = True,
    names: Iterable[str] | None = None,
    inputs: Callable[[Any], Any] | None = None,
    logits: Callable[[Any], Tensor] | None = None,
    targets: Callable[[Any], Tensor] | None = None,
    ignore: int = 255,
    chunk: int = 16,
    vectorize: bool = True,
    generator: torch.Generator | None = None,
    progress: Callable[[int], None] | None = None,
) -> Fisher:
    """Return the diagonal Fisher information of each penalized weight, by name, in float32 or finer.

    F_j is a mean over observations i of the expectation over labels k of (d log f_k(x_i) / d w_j)^2, at the weights as
    they are, where f is the softmax of the logits. An image is one observation for BK logits, a pixel for BKHW logits
    (labels of pixels are independent given the image), so that large images count more than small ones.

    - `exact`: the expectation is taken over all K classes, of every pixel, weighted by f. One backward pass for each
      class of each pixel: for dense logits only at a small size.
    - `sampled`: labels are drawn from f, for an image all its pixels at once, `draws` times. An unbiased estimate of
      `exact` at one backward pass a draw.
    - `empirical`: the data's labels. Not an estimate of the others, unless the model is right about its data. For dense
      logits the gradient of the sum over an image is squared, cross terms of its pixels included.

    The model is in eval mode meanwhile: dropout would add noise, and batch normalization in training mode makes one
    sample's gradient depend on the others. Samples are computed one by one; a layer that mixes samples even in eval
    mode sees batches of one. Memory: `chunk` gradients, and the running sums in float64.

    Args:
        model: the bare network (not wrapped by DDP or FSDP), on the device of its inputs.
        batches: any loader; its batches are read once, one after the other.
        labels: see above.
        draws: of `sampled` labels for each sample.
        normalize: divide by the mean over all entries of all returned tensors, so that their mean is 1 and a strength
            compares with that of L2-SP. The paper does not; without it the scale depends on K and on how sure f is.
        names: of other parameters than :func:`mtsp.anchors.penalized` gives.
        inputs: the model's arguments of a batch: a tensor, a tuple, or a dict of keyword arguments; the first dimension
            of every tensor is the sample. Left out: the batch itself if it is a tensor, the first of a tuple or list,
            all but `labels` of a dict.
        logits: BK or BK... logits of what the model returns. Left out: the value itself, or its `logits`.
        targets: labels of a batch, B or B...; for `empirical`, and for dense logits to leave out unknown pixels. Left
            out: the second of a tuple or list, `labels` of a dict; without any, all pixels count.
        ignore: the label of a pixel that does not count. Of dense logits only.
        chunk: gradients that are held at once, each as large as the penalized weights together.
        vectorize: batch the gradients with `torch.func.vmap`. A model that it cannot take (control flow on values,
            operators without a batching rule) is computed by a loop, which the log says.
        generator: of the sampled labels.
        progress: called with the number of samples done, after each batch.

    Raises:
        ValueError: no sample, no observation, labels missing or out of range, or `labels` none of the three, or
            gradients that are all zero or not finite.
    """
    if labels not in get_args(Labels):
        raise ValueError(f"labels must be {', '.join(get_args(Labels))}, got {labels!r}")
    if chunk < 1 or draws < 1:
        raise ValueError(f"chunk and draws must be at least 1, got {chunk} and {draws}")
    model = getattr(model, "_orig_mod", model)
    weights = _weights(model, names)
    total = {name: torch.zeros_like(w, dtype=torch.float64) for name, w in weights.items()}
    reader = _Reader(inputs or _inputs, logits or _logits, targets or _targets, labels, draws, ignore, generator)
    held = {name: weight.detach() for name, weight in weights.items()}
    samples = observations = 0
    with _evaluating(model):
        for batch in batches:
            sums: Fisher = {}
            observed = reader.read(model, batch)
            if vectorize:
                try:
                    sums = vectorized(model, held, observed, chunk)
                except torch.OutOfMemoryError:
                    raise
                except (RuntimeError, ValueError) as error:
                    _LOG.info("the Fisher information is computed sample by sample: %s", str(error).splitlines()[0])
                    vectorize = False
            if not vectorize:
                sums = looped(model, held, observed)
            for name, value in sums.items():
                total[name] += value
            samples += len(observed.valid)
            observations += int(observed.valid.sum())
            if progress is not None:
                progress(samples)
    if observations == 0:
        raise ValueError(f"none of the {samples} samples has a labeled pixel; check the loader, `targets` and `ignore`")
    runs = observations * (draws if labels == "sampled" else 1)
    plain = _plain_names(model)
    fisher = {plain[n]: (t / runs).to(at_least_float32(weights[n].dtype)) for n, t in total.items()}
    if wrong := [name for name, value in fisher.items() if not bool(value.isfinite().all())]:
        raise ValueError(f"the Fisher information of {wrong[0]} has values that are NaN or infinite")
    return mean_one(fisher) if normalize else fisher


def mean_one(fisher: Mapping[str, Tensor]) -> Fisher:
    """Return the values divided by their mean over all entries of all tensors.

    Raises:
        ValueError: the mean is zero or not finite.
    """
    entries = sum(value.numel() for value in fisher.values())
    mean = sum(float(value.double().sum()) for value in fisher.values()) / max(1, entries)
    if not 0 < mean < float("inf"):
        raise ValueError(f"Fisher information of mean {mean} cannot be normalized; are the logits constant?")
    return {name: value / mean for name, value in fisher.items()}


def save_fisher(path: Path, fisher: Mapping[str, Tensor], **notes: str) -> None:
    """Write the values as safetensors; `notes`, such as the data and the labels used, go into its metadata.

    Raises:
        OSError: it could not be written.
    """
    from safetensors.torch import save

    from mtsp.checkpoint import write_atomically

    values = {name: value.detach().cpu().contiguous() for name, value in fisher.items()}
    write_atomically(path, save(values, {"mtsp": "fisher", **notes}))


def load_fisher(path: Path) -> Fisher:
    """Return the values that :func:`save_fisher` wrote, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no file of safetensors, or not one of :func:`save_fisher`.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"no {path}; save_fisher writes it")
    try:
        with safe_open(path, "pt") as file:
            kind = (file.metadata() or {}).get("mtsp")
            values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if kind != "fisher":
        raise ValueError(f"{path} holds other tensors than a Fisher information; save_fisher writes one")
    return values


class _Reader(NamedTuple):
    """How a batch becomes arguments, logits and labels."""

    inputs: Callable[[Any], Any]
    logits: Callable[[Any], Tensor]
    targets: Callable[[Any], Tensor | None]
    labels: Labels
    draws: int
    ignore: int
    generator: torch.Generator | None

    @torch.no_grad()
    def read(self, model: nn.Module, batch: Any) -> Observed:
        arguments = _arguments(self.inputs(batch))
        scores = self.logits(model(*arguments[0], **arguments[1]))
        if scores.ndim < 2:
            raise ValueError(f"logits of the form BK or BKHW are expected, got {tuple(scores.shape)}; see `logits`")
        scores = scores.flatten(2) if scores.ndim > 2 else scores[..., None]  # BKS
        given = self._given(batch, scores)
        valid = torch.ones_like(scores[:, 0], dtype=torch.bool)
        if given is not None and scores.shape[2] > 1:
            valid = given != self.ignore
        if self.labels == "exact":
            return Observed(arguments, self.logits, valid, None, scores.shape[1] * scores.shape[2])
        if self.labels == "sampled":
            return Observed(arguments, self.logits, valid, self._drawn(scores), self.draws)
        if given is None:
            raise ValueError("empirical needs labels; say with `targets` where a batch has them, or use sampled")
        known = given[valid]
        if known.numel() and (int(known.min()) < 0 or int(known.max()) >= scores.shape[1]):
            raise ValueError(f"labels {int(known.min())} to {int(known.max())} do not fit {scores.shape[1]} logits")
        return Observed(arguments, self.logits, valid, given[:, None], 1)

    def _given(self, batch: Any, scores: Tensor) -> Tensor | None:
        """The batch's labels, BS, where they are needed."""
        samples, _, pixels = scores.shape
        given = self.targets(batch)
        if given is None or (self.labels != "empirical" and pixels == 1):
            return None
        if given.numel() != samples * pixels:
            raise ValueError(f"{given.numel()} labels for logits of {samples} x {pixels} observations; see `targets`")
        return given.to(scores.device).reshape(samples, pixels)

    def _drawn(self, scores: Tensor) -> Tensor:
        samples, _, pixels = scores.shape
        chances = scores.to(at_least_float32(scores.dtype)).softmax(1).movedim(1, -1).flatten(0, 1)
        drawn = torch.multinomial(chances, self.draws, replacement=True, generator=self.generator)  # (BS)n
        return drawn.reshape(samples, pixels, self.draws).movedim(2, 1)


def _weights(model: nn.Module, names: Iterable[str] | None) -> dict[str, nn.Parameter]:
    raw = {plain: name for name, plain in _plain_names(model).items()}
    own = {plain: (raw[plain], weight) for plain, weight in named_weights(model).items()}
    wanted = [known_name(name, own) for name in (penalized(model) if names is None else names)]
    if unknown := [name for name in wanted if name not in own]:
        raise ValueError(f"the model has no parameter {unknown[0]!r}; they are named like {next(iter(own), 'none')!r}")
    if not wanted:
        raise ValueError("the model has no weight of a convolution or linear layer; say with `names` which to take")
    return dict(own[name] for name in wanted)


def _plain_names(model: nn.Module) -> dict[str, str]:
    """Plain names by the model's own."""
    return dict(zip((name for name, _ in model.named_parameters()), named_weights(model), strict=True))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _arguments(value: Any) -> Arguments:
    if isinstance(value, Mapping):
        return (), dict(value)
    return (tuple(value) if isinstance(value, tuple | list) else (value,)), {}


def _inputs(batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return {name: value for name, value in batch.items() if name != "labels"}
    return batch[0] if isinstance(batch, tuple | list) else batch


def _logits(output: Any) -> Tensor:
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    if not isinstance(found, Tensor):
        raise ValueError(f"the model returns a {type(output).__name__}; say with `logits` where its logits are")
    return found


def _targets(batch: Any) -> Tensor | None:
    if isinstance(batch, Mapping):
        return batch.get("labels")
    return batch[1] if isinstance(batch, tuple | list) and len(batch) > 1 else None
