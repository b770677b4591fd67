"""L2-SP for Lightning."""

from collections.abc import Sequence
from typing import Any

from mtsp.integrations import known_branches, measured
from mtsp.regularizers import Anchored

try:
    from lightning.pytorch import Callback
except ImportError as error:
    raise ImportError("mtsp.integrations.lightning needs lightning 2; pip install lightning") from error


class L2SPCallback(Callback):
    """Attaches a regularizer to a LightningModule's optimizer while it is fitted::

        module = Classifier(network)
        regularizer = L2SP(network, anchors=anchors, alpha=0.1, beta=0.01)
        Trainer(callbacks=[L2SPCallback(regularizer)]).fit(module, loader)

    Build the regularizer before `fit`, from the network while it holds its pretrained weights: with `ckpt_path`,
    Lightning loads the checkpoint's weights before it trains. Automatic and manual optimization, gradient accumulation,
    clipping and mixed precision are all one pull for each step of the optimizer. The penalty and the relative distance
    from the anchors are logged at the end of each epoch, as `penalty` and `distance`, and of each branch asked for
    `distance`, `pull_to_gradient` (of the first step since the one before was logged) and `time_constant`, as in
    `pull_to_gradient/backbone`. Does not work with the older
    package `pytorch_lightning`, whose classes differ.

    Args:
        regularizer: not attached yet.
        optimizer: which of the module's optimizers, if it has several.
        branches: modules, as the network that was given to the regularizer names them.

    Raises:
        ValueError: at once, for a branch without a weight that is pulled.
        ValueError: when fitting begins, for what :meth:`mtsp.regularizers.L2SP.attach` refuses, or if the module has
            several optimizers and none is chosen.
    """

    def __init__(self, regularizer: Anchored, *, optimizer: int | None = None, branches: Sequence[str] = ()) -> None:
        self.regularizer, self.branches = regularizer, known_branches(regularizer, branches)
        self.optimizer = optimizer

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach; a fit that failed may have left it attached to an optimizer that is gone."""
        count = len(trainer.optimizers)
        if self.optimizer is None and count != 1:
            raise ValueError(f"the module has {count} optimizers; say which is regularized, as in optimizer=0")
        if not 0 <= (chosen := self.optimizer or 0) < count:
            raise ValueError(f"optimizer={chosen}, but the module has {count}, counted from 0")
        self.regularizer.detach()
        self.regularizer.attach(trainer.optimizers[chosen])

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log where the weights are. On every process: shards are gathered."""
        pl_module.log_dict(measured(self.regularizer, self.branches))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Act no more on this optimizer."""
        self.regularizer.detach()
