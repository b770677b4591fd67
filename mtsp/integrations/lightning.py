"""Callback that trains with L2-SP in Lightning."""

from collections.abc import Sequence
from typing import Any

from mtsp.integrations.callback import RegularizerCallback
from mtsp.regularizers import Regularizer
from mtsp.regularizers.strength import Strength

try:
    from lightning.pytorch import Callback
except ImportError as error:
    raise ImportError("mtsp.integrations.lightning needs lightning 2; pip install lightning") from error


class L2SPCallback(RegularizerCallback, Callback):
    """Pull a LightningModule towards its pretrained weights during `fit`::

        module = Classifier(AutoModel.from_pretrained("..."))
        Trainer(callbacks=[L2SPCallback(alpha=0.01)]).fit(module, loader)

    All convolution and linear weights loaded by `from_pretrained` of transformers are anchored, and all others are new;
    for models of other libraries, `new` must name the new modules. The callback prints the number of anchored, new
    and free weights. It copies the anchors before Lightning loads a checkpoint (`ckpt_path`); the checkpoint must have
    been trained with the same anchors, which is checked by their fingerprint. If you pass a regularizer, build it
    before `fit`, while the network has its pretrained weights.

    The pull acts once per optimizer step under automatic and manual optimization, gradient accumulation, clipping and
    mixed precision. At the end of each epoch, the callback logs `penalty` and `distance` (the relative distance from
    the anchors). For each of `branches` it also logs `distance`, `pull_to_gradient` (in the first step of the epoch)
    and `time_constant`, under names such as `pull_to_gradient/backbone`. The older package `pytorch_lightning` is not
    supported, because it has different classes.

    Args:
        regularizer: a regularizer that is not attached yet. None: build L2-SP of the whole LightningModule with
            `alpha`, `beta`, `new` and `options`.
        alpha, beta, new, options: see :func:`mtsp.integrations.l2sp_of_loaded`.
        optimizer: index of the optimizer to attach to, if the module has several.
        branches: names of modules in the network that the regularizer was built with, to be logged separately.

    Raises:
        ValueError: neither or both of `regularizer` and `alpha` are given, or a branch has no regularized weight. When
            fitting begins: attaching is refused (see :meth:`mtsp.regularizers.L2SP.attach`), the module has several
            optimizers and `optimizer` is None, or the checkpoint was trained with other anchors.
    """

    def __init__(
        self,
        regularizer: Regularizer | None = None,
        *,
        alpha: Strength | None = None,
        beta: Strength = 0.0,
        new: Sequence[str] | None = None,
        optimizer: int | None = None,
        branches: Sequence[str] = (),
        **options: Any,
    ) -> None:
        super().__init__(regularizer, alpha=alpha, beta=beta, new=new, branches=branches, **options)
        self.optimizer = optimizer
        self._saved: dict[str, str] = {}

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Capture the anchors, before a checkpoint is loaded."""
        if not self.is_built and stage == "fit":
            self.build(pl_module, told=trainer.is_global_zero)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach the regularizer to the chosen optimizer."""
        count = len(trainer.optimizers)
        if self.optimizer is None and count != 1:
            raise ValueError(f"the module has {count} optimizers; choose one, as in optimizer=0")
        if not 0 <= (chosen := self.optimizer or 0) < count:
            raise ValueError(
                f"optimizer={chosen}, but the module has {count} optimizers; give an index from 0 to {count - 1}"
            )
        self.attach_to(trainer.optimizers[chosen], self._saved)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log penalty and distances. This must run on every process, because shards are gathered."""
        pl_module.log_dict(self.measured())

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Detach the regularizer."""
        self.regularizer.detach()

    def state_dict(self) -> dict[str, str]:
        """Return the fingerprint of the anchors, to be saved in a checkpoint."""
        return self.anchor_state()

    def load_state_dict(self, state_dict: dict[str, str]) -> None:
        """Keep the fingerprint from a checkpoint, which is compared with the anchors when training begins."""
        self._saved = state_dict
