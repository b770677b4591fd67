"""Callback that trains with L2-SP in the `Trainer` of transformers."""

from typing import Any

from mtsp.integrations.callback import RegularizerCallback

try:
    from transformers import TrainerCallback
    from transformers.trainer_callback import ExportableState
except ImportError as error:
    raise ImportError("mtsp.integrations.transformers needs transformers; pip install transformers") from error


class L2SPCallback(RegularizerCallback, TrainerCallback, ExportableState):
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

    def on_init_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Capture the anchors, before a checkpoint is loaded."""
        if not self.is_built and parts.get("model") is not None:
            self.build(parts["model"], told=state.is_world_process_zero)

    def on_train_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Attach the regularizer; a resumed training must have the anchors that it had."""
        if not self.is_built:
            if state.global_step:
                raise ValueError("the model has already been resumed; pass this callback when the Trainer is created")
            self.build(parts["model"], told=state.is_world_process_zero)
        saved = (state.stateful_callbacks or {}).get(type(self).__name__)
        anchors = saved["attributes"]["anchors"] if state.global_step and isinstance(saved, dict) else {}
        self.attach_to(parts["optimizer"], anchors)

    def on_step_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Measure pull and gradient in the steps that are logged, so that a resumed run logs the same values."""
        every = state.logging_steps if self.branches and args.logging_strategy == "steps" else 0
        if every > 0 and (state.global_step + 1) % every == 0:
            self.regularizer.measure_next()

    def on_log(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Add the values to the last log entry. This must run on every process, because shards are gathered."""
        if state.log_history:
            state.log_history[-1].update(self.measured())

    def on_train_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Detach the regularizer."""
        self.regularizer.detach()

    def state(self) -> dict[str, Any]:
        """Return the fingerprint of the anchors, which the Trainer saves with a checkpoint."""
        return {"args": {}, "attributes": {"anchors": self.anchor_state()}}
