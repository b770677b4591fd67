"""L2-SP for Lightning."""

from collections.abc import Sequence
from typing import Any

from mtsp.integrations import known_branches, measured
from mtsp.regularizers import Regularizer

try:
    from lightning.pytorch import Callback
except ImportError as error:
    raise ImportError("mtsp.integrations.lightning needs lightning 2; pip install lightning") from error


class L2SPCallback(Callback):
    """Attaches a regularizer to a LightningModule's optimizer while it is fitted::

        module = Classifier(network)
        regularizer = L2SP(network, anchors=anchors, alpha=0.1, beta=0.01)
        Trainer(callbacks=[L2SPCallback(regularizer)]).fit(module, loader)

    Build the regularizer before `fit`, while the network has its pretrained weights: with `ckpt_path`, Lightning loads
    the checkpoint's weights before it trains. It acts once per optimizer step under automatic and manual optimization,
    gradient accumulation, clipping and mixed precision. At the end of each epoch it logs `penalty` and `distance` (the
    relative distance from the anchors), and for each of `branches` its `distance`, `pull_to_gradient` (in the first
    step of the epoch) and `time_constant`, as `pull_to_gradient/backbone`. The older package `pytorch_lightning` does
    not work: its classes differ.

    Args:
        regularizer: not attached yet.
        optimizer: index of the module's optimizer to use, if it has several.
        branches: names of modules in the network that the regularizer was built with.

    Raises:
        ValueError: a branch has no regularized weight; when fitting begins: attaching is refused (see
            :meth:`mtsp.regularizers.L2SP.attach`), or the module has several optimizers and none is chosen.
    """

    def __init__(self, regularizer: Regularizer, *, optimizer: int | None = None, branches: Sequence[str] = ()) -> None:
        self.regularizer, self.branches = regularizer, known_branches(regularizer, branches)
        self.optimizer = optimizer

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach the regularizer; after a failed fit, it may still be attached to an old optimizer."""
        count = len(trainer.optimizers)
        if self.optimizer is None and count != 1:
            raise ValueError(f"the module has {count} optimizers; choose one, as in optimizer=0")
        if not 0 <= (chosen := self.optimizer or 0) < count:
            raise ValueError(f"optimizer={chosen}, but the module has {count}, counted from 0")
        self.regularizer.detach()
        self.regularizer.attach(trainer.optimizers[chosen])

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log penalty and distances. Runs on every process, because shards are gathered."""
        pl_module.log_dict(measured(self.regularizer, self.branches))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Detach the regularizer."""
        self.regularizer.detach()
