"""Callback that trains with L2-SP in the `Trainer` of transformers."""

from collections.abc import Sequence
from typing import Any

from mtsp.integrations import known_branches, l2sp_of_loaded, measured, summary
from mtsp.regularizers import Regularizer
from mtsp.regularizers.strength import Strength

try:
    from transformers import TrainerCallback
    from transformers.trainer_callback import ExportableState
except ImportError as error:
    raise ImportError("mtsp.integrations.transformers needs transformers; pip install transformers") from error


class L2SPCallback(TrainerCallback, ExportableState):
    """Pull a model towards its pretrained weights while the `Trainer` trains it::

        model = AutoModelForImageClassification.from_pretrained("...", num_labels=10)
        Trainer(model, arguments, train_dataset=..., callbacks=[L2SPCallback(alpha=0.01)]).train()

    All convolution and linear weights loaded by `from_pretrained` are anchored, and those that it initialized are new.
    The callback prints the number of anchored, new and free weights. It copies the anchors when the Trainer is created,
    before a checkpoint is loaded into the model; a resumed training must have the same anchors, which is checked by
    their fingerprint. If you pass a regularizer, build it before `train` from the model that you give to the Trainer
    (this excludes `model_init`).

    Whenever the Trainer logs, `penalty` and `distance` (the relative distance from the anchors) are added to its log
    history; callbacks that ran earlier do not log them. For each of `branches`, `distance`, `pull_to_gradient` and
    `time_constant` are added under names such as `pull_to_gradient/bert`. If the Trainer logs by steps, the pull is
    measured in each logged step (a final entry between two of these steps repeats the earlier measurement); otherwise
    in the first step after the previous entry.

    Args:
        regularizer: a regularizer that is not attached yet. None: build L2-SP with `alpha`, `beta`, `new` and
            `options`.
        alpha, beta, new, options: see :func:`mtsp.integrations.l2sp_of_loaded`; `anchor_dtype` and `offload` reduce
            the memory of the anchors.
        branches: names of modules in the model, to be logged separately.

    Raises:
        ValueError: neither or both of `regularizer` and `alpha` are given, or a branch has no regularized weight. When
            training begins: attaching is refused (see :meth:`mtsp.regularizers.L2SP.attach`), for example because the
            training arguments set a `weight_decay`; or the checkpoint was trained with other anchors.
    """

    def __init__(
        self,
        regularizer: Regularizer | None = None,
        *,
        alpha: Strength | None = None,
        beta: Strength = 0.0,
        new: Sequence[str] | None = None,
        branches: Sequence[str] = (),
        **options: Any,
    ) -> None:
        if (regularizer is None) == (alpha is None):
            raise ValueError("give a regularizer, or alpha to build L2-SP from the weights that from_pretrained loads")
        self._regularizer, self._settings = regularizer, {"alpha": alpha, "beta": beta, "new": new, **options}
        self.branches = branches if regularizer is None else known_branches(regularizer, branches)

    @property
    def regularizer(self) -> Regularizer:
        """The regularizer; if the callback builds it, it is available only after the Trainer was created."""
        if self._regularizer is None:
            raise ValueError("the regularizer is built when the Trainer is created with this callback")
        return self._regularizer

    def on_init_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Capture the anchors, before a checkpoint is loaded."""
        if self._regularizer is None and parts.get("model") is not None:
            self._build(parts["model"], told=state.is_world_process_zero)

    def on_train_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Attach the regularizer, after detaching it from the optimizer of an earlier training that failed."""
        if self._regularizer is None:
            if state.global_step:
                raise ValueError("the model has already been resumed; pass this callback when the Trainer is created")
            self._build(parts["model"], told=state.is_world_process_zero)
        saved = (state.stateful_callbacks or {}).get(type(self).__name__)
        if state.global_step and isinstance(saved, dict) and saved["attributes"]["anchors"]:
            self.regularizer.load_state_dict(saved["attributes"]["anchors"])
        self.regularizer.detach()
        self.regularizer.attach(parts["optimizer"])

    def on_step_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Measure pull and gradient in the steps that are logged, so that a resumed run logs the same values."""
        every = state.logging_steps if self.branches and args.logging_strategy == "steps" else 0
        if every > 0 and (state.global_step + 1) % every == 0:
            self.regularizer.measure_next()

    def on_log(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Add the values to the last log entry. This must run on every process, because shards are gathered."""
        if state.log_history:
            state.log_history[-1].update(measured(self.regularizer, self.branches))

    def on_train_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Detach the regularizer."""
        self.regularizer.detach()

    def state(self) -> dict[str, Any]:
        """Return the fingerprint of the anchors, which the Trainer saves with a checkpoint."""
        return {"args": {}, "attributes": {"anchors": self._regularizer.state_dict() if self._regularizer else {}}}

    def _build(self, model: Any, *, told: bool) -> None:
        self._regularizer = l2sp_of_loaded(model, **self._settings)
        self.branches = known_branches(self._regularizer, self.branches)
        if told:
            print(summary(self._regularizer))
