"""Use L2-SP in Lightning: `pip install lightning`, `python tools/examples/with_lightning.py`."""

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mtsp import anchors
from mtsp.integrations.lightning import L2SPCallback
from mtsp.regularizers import L2SP


class Classifier(lightning.LightningModule):
    """A random backbone, in place of a pretrained one, with a new head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(8, 16), nn.ReLU())
        self.head = nn.Linear(16, 3)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        """Return the loss of a batch of images and labels."""
        images, labels = batch
        return nn.functional.cross_entropy(self.head(self.backbone(images)), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD without weight decay, because the regularizer decays the weights."""
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def main(epochs: int = 4) -> dict[str, float]:
    """Train and return the last logged values."""
    torch.manual_seed(0)
    module = Classifier()
    loader = DataLoader(TensorDataset(torch.randn(64, 8), torch.randint(0, 3, (64,))), batch_size=16)

    pretrained = [name for name, _ in module.named_parameters() if name.startswith("backbone.")]
    regularizer = L2SP(module, anchors=anchors.capture(module, pretrained), alpha=0.1, beta=0.01)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[L2SPCallback(regularizer)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


if __name__ == "__main__":
    print(main())
