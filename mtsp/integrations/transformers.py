"""L2-SP for the `Trainer` of transformers."""

from collections.abc import Sequence
from typing import Any

from mtsp.integrations import known_branches, measured
from mtsp.regularizers import Regularizer

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise ImportError("mtsp.integrations.transformers needs transformers; pip install transformers") from error


class L2SPCallback(TrainerCallback):
    """Attaches a regularizer to the `Trainer`'s optimizer while it trains::

        model = AutoModelForSequenceClassification.from_pretrained("...")
        regularizer = L2SP(model, anchors=dict(model.base_model.named_parameters(prefix="bert")), alpha=0.1, beta=0.01)
        Trainer(model, arguments, train_dataset=..., callbacks=[L2SPCallback(regularizer)]).train()

    Build the regularizer before `train`, from the model that the Trainer gets (not with `model_init`): on resuming,
    the Trainer loads the checkpoint's weights into the model, and anchors captured then would be those. Whenever the
    Trainer logs, `penalty` and `distance` (the relative distance from the anchors) are added to its log history;
    loggers that ran before do not show them. Each of `branches` adds its `distance`, `pull_to_gradient` and
    `time_constant`, as `pull_to_gradient/bert`. Where the Trainer logs by steps, the pull is measured in the logged
    step (a last line between these repeats the earlier measurement); otherwise in the first step after the line before.

    Args:
        regularizer: not attached yet.
        branches: names of modules in the model.

    Raises:
        ValueError: a branch has no regularized weight; when training begins: attaching is refused (see
            :meth:`mtsp.regularizers.L2SP.attach`), for example because the training arguments set a `weight_decay`.
    """

    def __init__(self, regularizer: Regularizer, *, branches: Sequence[str] = ()) -> None:
        self.regularizer, self.branches = regularizer, known_branches(regularizer, branches)

    def on_train_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Attach the regularizer; after a failed training, it may still be attached to an old optimizer."""
        self.regularizer.detach()
        self.regularizer.attach(parts["optimizer"])

    def on_step_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Measure pull and gradient in the steps that are logged, so that a resumed run logs the same."""
        every = state.logging_steps if self.branches and args.logging_strategy == "steps" else 0
        if every > 0 and (state.global_step + 1) % every == 0:
            self.regularizer.measure_next()

    def on_log(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Add the values to the last line of the log history. Runs on every process, because shards are gathered."""
        if state.log_history:
            state.log_history[-1].update(measured(self.regularizer, self.branches))

    def on_train_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Detach the regularizer."""
        self.regularizer.detach()
