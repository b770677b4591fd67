"""Losses on features: DELTA keeps them near the pretrained network's, BSS suppresses small singular values.

Multiply them by a strength and add them to the task's loss: they depend on the data, so they cannot act in the
optimizer's hook as the regularizers do. An experiment has no section for them: BSS needs a whole batch at once, while
the losses of a run are sums over examples, and DELTA needs the pretrained network beside the trained one.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtsp.batches import evaluating


class Delta:
    """DELTA: the distance of a network's feature maps from those of the pretrained network on the same input.

    Call the network first, then this with the same inputs::

        delta = Delta(model, reference=pretrained, layers=["backbone.layer4"])
        loss = task_loss(model(images), labels) + 0.01 * delta(images)

    After Li, Xiong, Wang, Rao, Liu and Huan, "DELTA: deep learning
    transfer using feature map with attention for convolutional networks", ICLR 2019, section 3.2; see
    :func:`feature_distance` for the formula and what differs. The paper also pulls the new head to zero, as beta
    of a regularizer does.

    Args:
        model: the network to train.
        reference: a separate copy with the pretrained weights, on the same device; frozen and put in eval mode.
        layers: names of modules, in both networks, whose output is a tensor with channels second.
        attention: weights of the channels of each layer, from :func:`channel_attention`; None: all equal.

    Raises:
        ValueError: the networks share weights (the distance would always be zero), or lack a layer, or the attention
            is for other layers.
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
            raise ValueError(f"attention is given for {', '.join(attention)}, the layers are {', '.join(layers)}")
        places = {weight.data_ptr() for weight in reference.parameters()} - {0}
        if shared := next((name for name, weight in model.named_parameters() if weight.data_ptr() in places), None):
            raise ValueError(
                f"model and reference share the weight {shared}: their features would never differ; "
                "use copy.deepcopy(model), made before training, as the reference"
            )
        self.reference = reference.eval().requires_grad_(False)
        self.attention = attention
        self._features: dict[str, Tensor] = {}
        self._references: dict[str, Tensor] = {}
        self._handles = _keep_outputs(model, layers, self._features, only_with_gradients=True)
        self._handles += _keep_outputs(reference, layers, self._references, only_with_gradients=False)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the distance between the features of the model's last call and the reference's on these inputs.

        Raises:
            ValueError: the model was not called with gradients enabled before, or the inputs have another size.
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
    """Return half the sum over layers and channels of C a_c times the mean squared difference of the feature maps.

    The paper's distance is the sum over channels of a_c ||F_c - F0_c||^2 for one example. Here, as in its authors'
    code, it is halved, divided by the size of a map, and multiplied by the number of channels C, so that layers of
    different sizes count alike. Their code sums over the batch; this is the mean, so that the strength does not depend
    on the batch size.

    Args:
        features: BC or BC... by layer.
        references: the same for the pretrained network.
        attention: a, C values of sum 1, by layer; None: 1/C.

    Raises:
        ValueError: a layer's shapes differ.
    """
    total = torch.zeros(())
    for layer, found in features.items():
        reference = references[layer]
        if found.shape != reference.shape:
            raise ValueError(
                f"the features of {layer} have shape {tuple(found.shape)}, those of the reference "
                f"{tuple(reference.shape)}; call both with the same inputs"
            )
        precise = torch.promote_types(found.dtype, torch.float32)
        squares = (found.to(precise) - reference.to(precise)).square().reshape(*found.shape[:2], -1).mean(2)  # BC
        channels = found.shape[1]
        weights = None if attention is None else attention[layer].to(squares)
        if weights is not None and weights.shape != (channels,):
            shape = tuple(weights.shape)
            raise ValueError(f"the attention of {layer} has shape {shape}, the layer {channels} channels")
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
    """Return how much each channel of each layer matters: C values of sum 1, larger where the loss rises without it.

    They are the softmax of the rises over a layer's channels, standardized and divided by `temperature`. The paper
    (section 3.3) has the softmax of the rises themselves; its authors' code standardizes and divides by 5, as here.
    Both set a filter's weights to zero; here the layer's output channel is, bias included. It takes one evaluation of
    `batches` per channel, and one more.

    Args:
        model: the pretrained network with a head that was trained on the target task with frozen features; put in eval
            mode meanwhile.
        layers: names of modules whose output is a tensor with channels second.
        batches: a few batches of the target's training data, read many times.
        loss: returns the task's mean loss for a batch.
        temperature: larger values give more equal channels.

    Raises:
        ValueError: the model lacks a layer, or there is no batch.
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
    safe transfer learning", NeurIPS 2019, equation 5; its strength was 0.001 and k = 1.

    Computed in float64 as the smallest eigenvalues of the smaller Gram matrix: in float32, rounding errors of the
    largest squared singular value would hide the smallest. The gradient 2 sum u u' F needs no difference of singular
    values, so it is finite also where some are equal or zero; there it is one of the subgradients.

    Args:
        features: BD, one row per example (pool feature maps first). Any floating-point type.
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
    """Return the mean loss with one channel of a layer's output at zero."""

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
