"""Losses that keep features near the pretrained network's, or out of spectral directions that do not transfer.

Add them to the task's loss, times a strength: they are functions of the data, not of the weights alone, so that they
cannot act in the optimizer's hook as the regularizers do. An experiment has no section for them: BSS is of a batch as a
whole, where every loss of a run is a sum over examples that comes out the same on any number of processes and
micro-batches, and DELTA needs the pretrained network beside the one that is trained.
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

    The reference runs in eval mode, without gradients. After Li, Xiong, Wang, Rao, Liu and Huan, "DELTA: deep learning
    transfer using feature map with attention for convolutional networks", ICLR 2019, section 3.2; see
    :func:`feature_distance` for the formula and what differs. The paper also pulls the new head to zero: that is what a
    regularizer's beta does.

    Args:
        model: the network that is trained.
        reference: the same network with its pretrained weights, on the same device, not the same object. It is frozen.
        layers: names of modules of both whose output is a tensor with channels second.
        attention: weights of a layer's channels by layer, as :func:`channel_attention` gives; left out: all alike.

    Raises:
        ValueError: the networks share weights (the distance would be zero forever), or lack a layer, or the attention
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
            raise ValueError("no layer is given whose features would be compared")
        if attention is not None and set(attention) != set(layers):
            raise ValueError(f"attention is given for {', '.join(attention)}, the layers are {', '.join(layers)}")
        places = {weight.data_ptr() for weight in reference.parameters()} - {0}
        if shared := next((name for name, weight in model.named_parameters() if weight.data_ptr() in places), None):
            raise ValueError(
                f"model and reference share the weight {shared}: their features would never differ; "
                "give copy.deepcopy(model), made before training"
            )
        self.reference = reference.eval().requires_grad_(False)
        self.attention = attention
        self._features: dict[str, Tensor] = {}
        self._references: dict[str, Tensor] = {}
        self._handles = _keep_outputs(model, layers, self._features, only_with_gradients=True)
        self._handles += _keep_outputs(reference, layers, self._references, only_with_gradients=False)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the distance of the features of the model's last call from the reference's on these inputs.

        Raises:
            ValueError: the model was not called before with gradients enabled, or on inputs of another size.
        """
        if not self._features:
            raise ValueError("there are no features to compare; call the model first, with gradients enabled")
        with torch.no_grad():
            self.reference(*args, **kwargs)
        distance = feature_distance(self._features, self._references, self.attention)
        self._features.clear()  # else the graph would live until the next step
        self._references.clear()
        return distance

    def remove(self) -> None:
        """Take the hooks off both networks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._features.clear()


def feature_distance(
    features: Mapping[str, Tensor], references: Mapping[str, Tensor], attention: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Return half the sum over layers and channels of C a_c times the mean squared difference of the feature maps.

    The paper's distance is the sum over channels of a_c ||F_c - F0_c||^2 of one example. Here, as in its authors'
    code, it is halved, divided by the size of a map, and times the number of channels C, so that layers of other sizes
    weigh alike. Their code sums over the batch; here it is the mean, so that the strength does not depend on its size.

    Args:
        features: BC or BC... by layer.
        references: the same of the pretrained network.
        attention: a, C values of sum 1, by layer; left out: 1/C.

    Raises:
        ValueError: a layer's shapes differ.
    """
    total = torch.zeros(())
    for layer, found in features.items():
        reference = references[layer]
        if found.shape != reference.shape:
            raise ValueError(
                f"the features of {layer} have shape {tuple(found.shape)}, those of the reference "
                f"{tuple(reference.shape)}; give both the same inputs"
            )
        precise = torch.promote_types(found.dtype, torch.float32)
        squares = (found.to(precise) - reference.to(precise)).square().reshape(*found.shape[:2], -1).mean(2)  # BC
        channels = found.shape[1]
        weights = None if attention is None else attention[layer].to(squares)
        if weights is not None and weights.shape != (channels,):
            raise ValueError(
                f"the attention of {layer} has shape {tuple(weights.shape)}, the layer {channels} channels"
            )
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
    """Return how much each channel of each layer matters: by how much the loss rises without it; C values of sum 1.

    The softmax over a layer's channels of the rise, standardized over them and divided by `temperature`. The paper
    (section 3.3) has the softmax of the rise itself; its authors' code standardizes and divides by 5, as here. Both
    set a filter's weights to zero; here the channel of the layer's output, its bias included. It takes as many
    evaluations of `batches` as there are channels, and one more.

    Args:
        model: the pretrained network with a head that was trained on the target task, features held; taken in eval
            mode and put back.
        layers: names of modules whose output is a tensor with channels second.
        batches: a few batches of the target's training data, read again and again.
        loss: the task's mean loss of a batch.
        temperature: the larger, the more alike the channels.

    Raises:
        ValueError: a layer is not there, or there is no batch.
    """
    if not batches:
        raise ValueError("channel_attention needs batches that can be read several times: give a list of a few")
    kept: dict[str, Tensor] = {}
    with evaluating(model):
        handles = _keep_outputs(model, list(layers), kept, only_with_gradients=False)
        try:
            base = _mean_loss(model, batches, loss)
            channels = {layer: output.shape[1] for layer, output in kept.items()}
            attention = {}
            for layer, count in channels.items():
                rises = torch.stack([_without(model, layer, c, batches, loss) - base for c in range(count)])
                spread = rises.std(correction=0)
                standard = (rises - rises.mean()) / spread if spread > 0 else torch.zeros_like(rises)
                attention[layer] = (standard / temperature).softmax(0)
        finally:
            for handle in handles:
                handle.remove()
    return attention


def batch_spectral_shrinkage(features: Tensor, k: int = 1) -> Tensor:
    """Return the sum of the squares of the k smallest singular values of a batch's feature matrix (BSS).

    After Chen, Wang, Fu, Long and Wang, "Catastrophic forgetting meets negative transfer: batch spectral shrinkage for
    safe transfer learning", NeurIPS 2019, equation 5; its strength was 0.001 and k = 1.

    They are the smallest eigenvalues of the smaller Gram matrix, taken in float64: in float32 the square of the largest
    singular value would drown the smallest. The gradient 2 sum u u' F needs no difference of singular values, so that
    it is finite also where some are equal or zero; there it is one of the subgradients.

    Args:
        features: BD, one row for each example: pool feature maps before. Any floating-point type.
        k: how many, at most min(B, D).

    Raises:
        ValueError: the features are no matrix, or have fewer than k singular values.
    """
    if features.ndim != 2:
        raise ValueError(f"features of the form BD are expected, got {tuple(features.shape)}; pool feature maps before")
    if not 1 <= k <= min(features.shape):
        raise ValueError(f"k={k} of the {min(features.shape)} singular values of features {tuple(features.shape)}")
    exact = features.double()
    gram = exact @ exact.T if features.shape[0] <= features.shape[1] else exact.T @ exact
    smallest = torch.linalg.eigvalsh(gram)[:k]
    return smallest.sum().to(torch.promote_types(features.dtype, torch.float32))


def _keep_outputs(
    model: nn.Module, layers: Sequence[str], kept: dict[str, Tensor], *, only_with_gradients: bool
) -> list[torch.utils.hooks.RemovableHandle]:
    modules = dict(model.named_modules())
    if missing := [layer for layer in layers if layer not in modules]:
        raise ValueError(f"there is no module {missing[0]!r}; they are named like {list(modules)[-1]!r}")

    def keeper(layer: str) -> Callable[..., None]:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            if not isinstance(output, Tensor) or output.ndim < 2:
                raise ValueError(f"the output of {layer} is no tensor with channels; name a layer inside it")
            if torch.is_grad_enabled() or not only_with_gradients:
                kept[layer] = output

        return keep

    return [modules[layer].register_forward_hook(keeper(layer)) for layer in layers]


def _without(
    model: nn.Module, layer: str, channel: int, batches: Sequence[Any], loss: Callable[[nn.Module, Any], Tensor]
) -> Tensor:
    """The mean loss with one channel of a layer's output at zero."""

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
