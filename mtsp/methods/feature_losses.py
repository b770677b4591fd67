"""Losses on features: DELTA keeps features near those of the pretrained network; BSS shrinks small singular values.

Multiply a loss by a strength and add it to the loss of the task. Unlike regularizers, these losses depend on the data,
so they cannot act in a hook of the optimizer. They cannot be set in an experiment's config: BSS needs a whole batch at
once, while the losses of a run are sums over examples, and DELTA needs the pretrained network in memory as well.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtsp.batches import evaluating


class Delta:
    """DELTA: distance between the feature maps of a network and of the pretrained network for the same input.

    Call the network first, then the Delta object with the same inputs::

        delta = Delta(model, reference=pretrained, layers=["backbone.layer4"])
        loss = task_loss(model(images), labels) + 0.01 * delta(images)

    After Li, Xiong, Wang, Rao, Liu and Huan, "DELTA: deep learning
    transfer using feature map with attention for convolutional networks", ICLR 2019, section 3.2; see
    :func:`feature_distance` for the formula and the departures. The paper also pulls the new head to zero; for this,
    use a regularizer with beta.

    Args:
        model: the network to train.
        reference: a separate copy with the pretrained weights, on the same device; frozen and put in eval mode.
        layers: names of modules in both networks. Their output must be a tensor with channels in dimension 1.
        attention: channel weights by layer, from :func:`channel_attention`; None: equal weights.

    Raises:
        ValueError: the networks share weights (so the distance would always be zero), a layer does not exist, or the
            layers of `attention` differ from `layers`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        reference: nn.Module,
        layers: Sequence[str],
        attention: Mapping[str, Tensor] | None = None,
    ) -> None:
        if not layers:
            raise ValueError("layers is empty; name the layers to compare")
        if attention is not None and set(attention) != set(layers):
            raise ValueError(f"attention is given for {', '.join(attention)}, but the layers are {', '.join(layers)}")
        places = {weight.data_ptr() for weight in reference.parameters()} - {0}
        if shared := next((name for name, weight in model.named_parameters() if weight.data_ptr() in places), None):
            raise ValueError(
                f"model and reference share the weight {shared}, so their features would never differ; "
                "use copy.deepcopy(model), made before training, as the reference"
            )
        self.reference = reference.eval().requires_grad_(False)
        self.attention = attention
        self._features: dict[str, Tensor] = {}
        self._references: dict[str, Tensor] = {}
        self._handles = _keep_outputs(model, layers, self._features, only_with_gradients=True)
        self._handles += _keep_outputs(reference, layers, self._references, only_with_gradients=False)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the distance, a scalar, between the features of the model's last call and of the reference.

        The arguments must be those of the model's last call; the reference is called with them.

        Raises:
            ValueError: the model has not been called with gradients enabled, or the inputs have another size.
        """
        if not self._features:
            raise ValueError("there are no features to compare; call the model first, with gradients enabled")
        with torch.no_grad():
            self.reference(*args, **kwargs)
        distance = feature_distance(self._features, self._references, self.attention)
        self._features.clear()  # otherwise the graph would stay in memory until the next step
        self._references.clear()
        return distance

    def remove(self) -> None:
        """Remove the hooks from both networks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._features.clear()


def feature_distance(
    features: Mapping[str, Tensor], references: Mapping[str, Tensor], attention: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Return 1/2 sum over layers and channels of C a_c times the mean squared difference of the feature maps.

    The paper's distance is the sum over channels c of a_c ||F_c - F0_c||^2 for one example. As in the authors' code, it
    is halved here, divided by the size of a feature map, and multiplied by the number of channels C, so that layers of
    different sizes have equal weight. Their code sums over the batch; this function takes the mean, so that the
    strength does not depend on the batch size.

    Args:
        features: features of the trained network by layer, BC or BC...
        references: features of the pretrained network by layer, with the same shapes.
        attention: the channel weights a by layer, C values with sum 1; None: 1/C.

    Raises:
        ValueError: a layer's shapes differ.
    """
    total = torch.zeros(())
    for layer, found in features.items():
        reference = references[layer]
        if found.shape != reference.shape:
            raise ValueError(
                f"the features of {layer} have shape {tuple(found.shape)}, but {tuple(reference.shape)} in the "
                "reference; call both networks with the same inputs"
            )
        precise = torch.promote_types(found.dtype, torch.float32)
        squares = (found.to(precise) - reference.to(precise)).square().reshape(*found.shape[:2], -1).mean(2)  # BC
        channels = found.shape[1]
        weights = None if attention is None else attention[layer].to(squares)
        if weights is not None and weights.shape != (channels,):
            shape = tuple(weights.shape)
            raise ValueError(f"the attention of {layer} has shape {shape}, but the layer has {channels} channels")
        by_example = squares.sum(1) if weights is None else channels * (squares @ weights)
        total = total.to(squares.device) + 0.5 * by_example.mean()
    return total


@torch.no_grad()
def channel_attention(
    model: nn.Module,
    layers: Iterable[str],
    batches: Sequence[Any],
    loss: Callable[[nn.Module, Any], Tensor],
    *,
    temperature: float = 5.0,
) -> dict[str, Tensor]:
    """Return the importance of channels by layer: C values with sum 1, larger if the loss rises without the channel.

    For each channel, the rise of the loss is measured with the channel set to zero. The rises are standardized over the
    channels of a layer, divided by `temperature`, and passed through a softmax. The paper (section 3.3) takes the
    softmax of the rises themselves; the authors' code standardizes them and divides by 5, as here. Both set the weights
    of a filter to zero; here the output channel of the layer is set to zero, which includes the bias. The cost is one
    evaluation of `batches` per channel, and one more.

    Args:
        model: the pretrained network with a head that was trained on the target task while all else was frozen; put in
            eval mode meanwhile.
        layers: names of modules. Their output must be a tensor with channels in dimension 1.
        batches: a few batches of the target task's training data, read many times.
        loss: function of the model and a batch that returns the mean loss of the task.
        temperature: larger values make the channels more equal.

    Raises:
        ValueError: a layer does not exist, or `batches` is empty.
    """
    if not batches:
        raise ValueError("batches is empty; give a list of a few batches, which are read several times")
    kept: dict[str, Tensor] = {}
    attention = {}
    with evaluating(model):
        handles = _keep_outputs(model, list(layers), kept, only_with_gradients=False)
        try:
            base = _mean_loss(model, batches, loss)
        finally:
            for handle in handles:
                handle.remove()
        for layer, output in kept.items():
            losses = [_without(model, layer, channel, batches, loss) for channel in range(output.shape[1])]
            rises = torch.stack(losses) - base
            spread = rises.std(correction=0)
            standard = (rises - rises.mean()) / spread if spread > 0 else torch.zeros_like(rises)
            attention[layer] = (standard / temperature).softmax(0)
    return attention


def batch_spectral_shrinkage(features: Tensor, k: int = 1) -> Tensor:
    """Return the sum of the squared k smallest singular values of a batch's feature matrix (BSS).

    After Chen, Wang, Fu, Long and Wang, "Catastrophic forgetting meets negative transfer: batch spectral shrinkage for
    safe transfer learning", NeurIPS 2019, equation 5; the paper uses a strength of 0.001 and k = 1.

    Computed in float64 as the smallest eigenvalues of the smaller Gram matrix: in float32, rounding errors of the
    largest squared singular value would hide the smallest. The gradient 2 sum u u' F needs no difference of singular
    values, so it is finite even if some are equal or zero; then it is a subgradient.

    Args:
        features: BD, one row per example, of any floating-point dtype. Pool feature maps first.
        k: number of singular values, at most min(B, D).

    Raises:
        ValueError: the features are not a matrix, or have fewer than k singular values.
    """
    if features.ndim != 2:
        raise ValueError(f"expected features of shape BD, got {tuple(features.shape)}; pool feature maps first")
    count = min(features.shape)
    if not 1 <= k <= count:
        raise ValueError(f"k={k}, but features of shape {tuple(features.shape)} have {count} singular values")
    exact = features.double()
    gram = exact @ exact.T if features.shape[0] <= features.shape[1] else exact.T @ exact
    smallest = torch.linalg.eigvalsh(gram)[:k]
    return smallest.sum().to(torch.promote_types(features.dtype, torch.float32))


def _keep_outputs(
    model: nn.Module, layers: Sequence[str], kept: dict[str, Tensor], *, only_with_gradients: bool
) -> list[torch.utils.hooks.RemovableHandle]:
    modules = dict(model.named_modules())
    if missing := [layer for layer in layers if layer not in modules]:
        raise ValueError(f"there is no module {missing[0]!r}; the modules are named like {list(modules)[-1]!r}")

    def keeper(layer: str) -> Callable[..., None]:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            if not isinstance(output, Tensor) or output.ndim < 2:
                raise ValueError(f"the output of {layer} is not a tensor with channels; name a layer inside it")
            if torch.is_grad_enabled() or not only_with_gradients:
                kept[layer] = output

        return keep

    return [modules[layer].register_forward_hook(keeper(layer)) for layer in layers]


def _without(
    model: nn.Module, layer: str, channel: int, batches: Sequence[Any], loss: Callable[[nn.Module, Any], Tensor]
) -> Tensor:
    """Return the mean loss with one channel of a layer's output set to zero."""

    def switch_off(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[:, channel] = 0
        return output

    handle = model.get_submodule(layer).register_forward_hook(switch_off)
    try:
        return _mean_loss(model, batches, loss)
    finally:
        handle.remove()


def _mean_loss(model: nn.Module, batches: Sequence[Any], loss: Callable[[nn.Module, Any], Tensor]) -> Tensor:
    return torch.stack([loss(model, batch).double() for batch in batches]).mean()
