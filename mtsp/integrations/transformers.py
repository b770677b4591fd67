"""L2-SP for the `Trainer` of transformers."""

from collections.abc import Sequence
from typing import Any

from mtsp.integrations import known_branches, measured
from mtsp.regularizers import Anchored

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
    the Trainer loads the checkpoint's weights into the model, and anchors taken then would be those. Where the Trainer
    logs, the penalty and the relative distance from the anchors go into its log history; loggers that ran before do
    not show them. Of each branch asked for there are `distance`, `pull_to_gradient` and `time_constant`, too, as in
    `pull_to_gradient/bert`: where the Trainer logs every so many steps, of the step that is logged (a last line that
    is of no such step repeats what was measured before), and otherwise of the first step since the line before.

    Args:
        regularizer: not attached yet.
        branches: modules, as the model names them.

    Raises:
        ValueError: at once, for a branch without a weight that is pulled.
        ValueError: when training begins, for what :meth:`mtsp.regularizers.L2SP.attach` refuses, such as a
            `weight_decay` other than 0 in the training arguments.
    """

    def __init__(self, regularizer: Anchored, *, branches: Sequence[str] = ()) -> None:
        self.regularizer, self.branches = regularizer, known_branches(regularizer, branches)

    def on_train_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Attach; a training that failed may have left it attached to an optimizer that is gone."""
        self.regularizer.detach()
        self.regularizer.attach(parts["optimizer"])

    def on_step_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Have pull and gradient measured in the steps that are logged, whether they follow a resumption or not."""
        every = state.logging_steps if self.branches and args.logging_strategy == "steps" else 0
        if every > 0 and (state.global_step + 1) % every == 0:
            self.regularizer.measure_next()

    def on_log(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Add what is measured to the newest line of the log history. On every process: shards are gathered."""
        if state.log_history:
            state.log_history[-1].update(measured(self.regularizer, self.branches))

    def on_train_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Act no more on this optimizer."""
        self.regularizer.detach()
