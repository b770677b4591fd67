"""Train a network as users of other libraries do, for tools/bench/train.py. Every function calls `tick` after a step.

All programs of a case train the same network on the same files, and pull it towards its start: mtsp with its
regularizer, the others with the loss term that tllib adds.
"""

import json
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtsp.batches import collate
from mtsp.config import parse
from mtsp.regularizers import L2SP
from mtsp.types import Batch
from tools.build import AnyExperiment, build_network

Tick = Callable[[], object]
ALPHA, BETA, LR = 0.1, 0.01, 0.01
IN_MEMORY = 4  # batches


def mtsp(values: dict[str, Any], folder: Path, tick: Tick) -> None:
    """Train with tools/train.py: logging, tracking and checkpoints are on."""
    from mtsp.training import loop
    from tools.train import train

    step = loop.optimizer_step

    def ticked(*arguments: Any, **named: Any) -> Any:
        found = step(*arguments, **named)
        tick()
        return found

    loop.optimizer_step = ticked
    train(parse(AnyExperiment, values), folder / "run")


class Evaluated(NamedTuple):
    """Time of an evaluation from the network's first call to the end."""

    seconds: float
    outside: float
    """Fraction of the time in which the main thread did not run the network."""


def evaluation(folder: Path) -> Evaluated:
    """Evaluate with tools/evaluate.py and write predictions."""
    from tools.evaluate import main

    config = folder / "experiment.json"
    network = type(build_network(parse(AnyExperiment, json.loads(config.read_text()))).model)
    times: list[float] = []  # beginning and end of each call

    def note(module: nn.Module, *_: Any) -> None:
        if isinstance(module, network):
            times.append(time.perf_counter())

    hooks = nn.modules.module
    handles = hooks.register_module_forward_pre_hook(note), hooks.register_module_forward_hook(note)
    out = str(folder / "predictions")
    try:
        main(["--config", str(config), "--checkpoint", str(folder / "start.safetensors"), "--save-predictions", out])
    finally:
        for handle in handles:
            handle.remove()
    seconds = time.perf_counter() - times[0]
    return Evaluated(seconds, 1 - (sum(times[1::2]) - sum(times[::2])) / seconds)


def bare(values: dict[str, Any], folder: Path, tick: Tick) -> None:
    """Train with a bare PyTorch loop on batches that are in memory; no program can be faster."""
    experiment = parse(AnyExperiment, values)
    network = build_network(experiment).model.train().to(memory_format=torch.channels_last)  # pyright: ignore
    batches = []
    for stage in experiment.train.stages[:1]:
        for name, size in stage.batch_size.items():
            rng, examples = torch.Generator().manual_seed(0), experiment.data[name].build()
            order = torch.randint(len(examples), (IN_MEMORY, size), generator=rng).tolist()
            seeded = [[examples.train_sample(i, np.random.default_rng(i)) for i in part] for part in order]
            batches.append([_channels_last(collate(samples)) for samples in seeded])
    optimizer = experiment.optimizer.build([{"params": list(network.parameters())}])
    L2SP(network, anchors=_anchors(network), alpha=ALPHA, beta=BETA).attach(optimizer)
    for number in range(experiment.train.steps):
        losses = []
        for entry in batches:
            batch = entry[number % IN_MEMORY]
            losses.append(_plain_loss(network(batch["frame"], batch.get("next_frame")), batch))
        torch.stack(losses).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        tick()


def _channels_last(batch: Batch) -> Any:
    return {
        key: value.contiguous(memory_format=torch.channels_last)
        if isinstance(value, Tensor) and value.ndim == 4
        else value
        for key, value in batch.items()
    }


def _plain_loss(outputs: Any, batch: Any) -> Tensor:
    """Return the losses as a user would write them: means over the batch."""
    losses = []
    if "label" in batch:
        losses.append(F.cross_entropy(outputs["label_logits"], batch["label"]))
    if "mask" in batch and "mask_logits" in outputs:
        losses.append(F.cross_entropy(outputs["mask_logits"], batch["mask"], ignore_index=255))
    if "mask" in batch and "aux_mask_logits" in outputs:
        losses.append(0.2 * F.cross_entropy(outputs["aux_mask_logits"], batch["mask"], ignore_index=255))
    if "flow" in batch:
        difference = (outputs["flow"] - batch["flow"]) * batch["flow_valid"][:, None]
        losses.append((difference.square().sum(1) + 1e-6).sqrt().mean())
    return torch.stack(losses).sum()


def _anchors(network: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in network.named_parameters() if weight.ndim > 1}


def _term(network: nn.Module, anchors: dict[str, Tensor]) -> Tensor:
    """Return tllib's loss term: half the squared distance of each weight to its anchor."""
    weights = dict(network.named_parameters())
    return ALPHA * torch.stack([0.5 * (weights[n] - anchor).square().sum() for n, anchor in anchors.items()]).sum()


def _image_folder(values: dict[str, Any]) -> Any:
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    entry = values["data"]["train"]
    crop = v2.RandomResizedCrop(entry["augment"]["crop"], scale=tuple(entry["augment"]["area"]))
    steps = [crop, v2.RandomHorizontalFlip(), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    return ImageFolder(entry["dataset"]["root"], v2.Compose(steps))


def _timm_network(values: dict[str, Any]) -> nn.Module:
    import timm

    return timm.create_model(values["model"]["backbone"], num_classes=values["model"]["classes"])


def _size(values: dict[str, Any]) -> int:
    return next(iter(values["train"]["stages"][0]["batch_size"].values()))


def timm_loop(values: dict[str, Any], folder: Path, tick: Tick) -> None:
    """Train with timm's loader and a loop like that of its training script."""
    from timm.data import create_dataset, create_loader
    from timm.utils import AverageMeter

    entry, size = values["data"]["train"], _size(values)
    crop = entry["augment"]["crop"]
    dataset: Any = create_dataset("", root=entry["dataset"]["root"])
    loader: Any = create_loader(
        dataset, (3, *crop), size, is_training=True, use_prefetcher=False,
        scale=tuple(entry["augment"]["area"]), color_jitter=0.0, num_workers=1, interpolation="bilinear",
        persistent_workers=True,
    )  # fmt: skip
    network = _timm_network(values).train().to(memory_format=torch.channels_last)  # pyright: ignore
    anchors, meter = _anchors(network), AverageMeter()
    optimizer = torch.optim.SGD(network.parameters(), lr=LR, momentum=0.9)
    for images, labels in islice(_endless(loader), values["train"]["steps"]):
        images = images.contiguous(memory_format=torch.channels_last)
        loss = F.cross_entropy(network(images), labels) + _term(network, anchors)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        meter.update(loss.item(), len(images))
        tick()


def _endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def transformers_trainer(values: dict[str, Any], folder: Path, tick: Tick) -> None:
    """Train with the Trainer of transformers, with the loss term in `compute_loss`."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    network = _timm_network(values)
    anchors = _anchors(network)

    class WithTerm(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Tensor:
            return F.cross_entropy(model(inputs["images"]), inputs["labels"]) + _term(network, anchors)

    class Ticks(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            tick()

    arguments = TrainingArguments(
        str(folder / "trainer"), max_steps=values["train"]["steps"], per_device_train_batch_size=_size(values),
        dataloader_num_workers=1, dataloader_persistent_workers=True, logging_steps=10, save_strategy="no",
        report_to=[], learning_rate=LR, optim="sgd", remove_unused_columns=False, use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
    )  # fmt: skip

    def stack(samples: list[Any]) -> dict[str, Tensor]:
        images, labels = zip(*samples, strict=True)
        return {"images": torch.stack(images), "labels": torch.tensor(labels)}

    WithTerm(network, arguments, stack, _image_folder(values), callbacks=[Ticks()]).train()


def lightning_trainer(values: dict[str, Any], folder: Path, tick: Tick) -> None:
    """Train with Lightning's Trainer, with the loss term in `training_step`."""
    import lightning
    from torch.utils.data import DataLoader

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = _timm_network(values)
            self.anchors = _anchors(self.network)

        def training_step(self, batch: Any, index: int) -> Tensor:
            images, labels = batch
            loss = F.cross_entropy(self.network(images), labels) + _term(self.network, self.anchors)
            self.log("loss", loss)
            return loss

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            tick()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=LR, momentum=0.9)

    loader = DataLoader(
        _image_folder(values), _size(values), shuffle=True, num_workers=1, persistent_workers=True, drop_last=True
    )
    trainer = lightning.Trainer(
        max_steps=values["train"]["steps"], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(Module(), loader)


def masks_loader(values: dict[str, Any], folder: Path, tick: Tick) -> None:
    """Train with a plain loop over a DataLoader that reads with PIL and augments with torchvision v2."""
    network = build_network(parse(AnyExperiment, values)).model
    _train_on_masks(values, network, lambda images: network(images, None), tick)


def smp_loop(values: dict[str, Any], folder: Path, tick: Tick) -> None:
    """Train DeepLabV3 of segmentation_models_pytorch, which has no EncNet, with the loop of :func:`masks_loader`."""
    import segmentation_models_pytorch as smp

    model = values["model"]
    network = smp.DeepLabV3(
        model["encoder"], encoder_weights=None, classes=model["classes"], encoder_output_stride=model["output_stride"]
    )
    _train_on_masks(values, network, lambda images: {"mask_logits": network(images)}, tick)


def _train_on_masks(values: dict[str, Any], network: nn.Module, predict: Callable[[Tensor], Any], tick: Tick) -> None:
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    entry = values["data"]["train"]
    crop = v2.RandomResizedCrop(entry["augment"]["crop"], scale=(0.5, 1.0))
    steps = v2.Compose([crop, v2.RandomHorizontalFlip(), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    frames = sorted(Path(entry["dataset"]["frames"]).iterdir())

    class Pairs(Dataset[Any]):
        def __len__(self) -> int:
            return len(frames)

        def __getitem__(self, index: int) -> Any:
            image = Image.open(frames[index]).convert("RGB")
            mask = np.array(Image.open(Path(entry["dataset"]["masks"]) / f"{frames[index].stem}.png"))
            pixels, classes = steps(image, tv_tensors.Mask(mask))
            return pixels, classes.long()

    network.train()
    anchors, optimizer = _anchors(network), torch.optim.SGD(network.parameters(), lr=LR, momentum=0.9)
    loader = DataLoader(Pairs(), _size(values), shuffle=True, num_workers=1, persistent_workers=True, drop_last=True)
    for images, masks in islice(_endless(loader), values["train"]["steps"]):
        loss = _plain_loss(predict(images), {"mask": masks}) + _term(network, anchors)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        tick()
