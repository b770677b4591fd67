"""Base class of all regularizers: attached to an optimizer, it acts exactly once per optimizer step."""

import warnings
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mtsp.anchors import fingerprint, named_weights
from mtsp.regularizers import reports
from mtsp.regularizers.buckets import Storage
from mtsp.regularizers.checks import (
    NEVER_ATTACHED,
    belongs_to_loop,
    check_same_anchors,
    expect_attachment,
    unwrapped,
)
from mtsp.regularizers.hook import Attachment, attach_squared
from mtsp.regularizers.penalties import Mode, Penalty, SquaredDistance
from mtsp.regularizers.rates import resolve_mode
from mtsp.regularizers.rehearsal import check_arrival
from mtsp.regularizers.reports import Report
from mtsp.regularizers.strength import Strength
from mtsp.regularizers.targets import Target, find_targets, under

_ANCHOR_DTYPES = (None, torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Regularizer:
    """Pulls every convolution and linear weight towards its anchor, or towards zero where it has none.

    Build a subclass after the pretrained weights are loaded, attach it to the optimizer, and train as always.

    *Coupled* adds the penalty's gradient to the weight's gradient before the step, as in the papers: it enters the
    momentum. *Decoupled* moves w by the fraction lr * strength of the distance before the step, so that Adam's scaling
    does not touch it; it is to L2-SP what AdamW is to L2. *Proximal* applies the penalty's proximal operator after the
    step: exact zeros where the penalty has a kink, and no strength is too large. Its step is lr / (1 - momentum) for
    SGD, so that it ends where the coupled form would. Unlike a term in the loss, the pull is not clipped, not scaled by
    gradient accumulation, and not part of any graph. Weights whose gradient is None (frozen or unused) do not move.

    Args:
        model: the network, wrapped or not. Kept by reference, so that parameters that FSDP2 swaps are found again.
        anchors: w0 by parameter name. Names of the model's biases and normalization layers are ignored; the values
            are copied. With `zero=True` only the names count. A row (output channel) of NaN has no anchor and is new,
            see :func:`mtsp.anchors.capture`. None: no anchors, every weight is pulled to zero with
            beta.
        alpha: strength on the weights that have an anchor: a number, a :class:`~mtsp.regularizers.Pace`, or one of
            these by name prefix (`{"flow": 0.1}`; the longest prefix wins, and every weight must have one).
        beta: strength on the other convolution and linear weights, likewise.
        mode: see above. `auto` is coupled for SGD and LBFGS and decoupled for other optimizers; where the penalty has
            a kink or uses Fisher information, it is proximal for all but LBFGS.
        zero: pull weights that have an anchor to zero instead: plain L2 with two strengths.
        every: regularize every parameter, also biases, normalization layers and embeddings (mode 101 of the authors'
            code).
        fisher: diagonal of the Fisher information by parameter name, for the penalties that use it.
        anchor_dtype: keep the anchors in this dtype; bfloat16 halves their memory and pulls to rounded anchors.
        offload: keep the anchors in CPU memory (pinned, for a GPU) and copy them over block by block.

    Raises:
        ValueError: an anchor has a name that is not in the model, another shape, or values that are not finite; or no
            anchor belongs to a convolution or linear weight; or a strength is negative or missing; or the penalty
            cannot act in this mode, or lacks its Fisher information. Otherwise a renamed module or a wrong checkpoint
            would silently go without regularization.
    """

    shared_penalty: ClassVar[Penalty]
    """Penalty of the weights that have an anchor."""
    new_penalty: ClassVar[Penalty] = SquaredDistance()
    """Penalty of new weights: 1/2 ||w||^2."""
    attachment: ClassVar[type[Attachment]] = Attachment
    """Class that applies the pull in each optimizer step."""

    def __init__(
        self,
        model: nn.Module,
        *,
        anchors: Mapping[str, Tensor] | None,
        alpha: Strength,
        beta: Strength,
        mode: Mode = "auto",
        zero: bool = False,
        every: bool = False,
        fisher: Mapping[str, Tensor] | None = None,
        anchor_dtype: torch.dtype | None = None,
        offload: bool = False,
    ) -> None:
        self.check_mode(mode)
        uses_fisher = self.shared_penalty.uses_fisher
        if (fisher is not None) != uses_fisher:
            what = "needs `fisher`, see mtsp.fisher.estimate" if uses_fisher else "does not use `fisher`"
            raise ValueError(f"{type(self).__name__} {what}")
        if anchor_dtype not in _ANCHOR_DTYPES:
            raise ValueError(f"anchor_dtype must be float64, float32, bfloat16 or float16, got {anchor_dtype}")
        self.model = model
        self.mode: Mode = mode
        self.targets = find_targets(model, anchors, alpha, beta, zero=zero, every=every, fisher=fisher)
        parts = [part for target in self.targets.values() for part in target.parts]
        for key in {"alpha" if part.shared else "beta" for part in parts if part.pace}:
            self.check_pace(key)
        self._penalties = {True: self.shared_penalty, False: self.new_penalty}
        self._state = {"regularizer": type(self).__name__, **_fingerprints(self.targets, uses_fisher=uses_fisher)}
        if anchor_dtype is not None:
            self.targets = {
                name: target if target.anchor is None else target._replace(anchor=target.anchor.to(anchor_dtype))
                for name, target in self.targets.items()
            }
        self._storage = Storage(anchor_dtype, offload)
        self._attachments: dict[int, Attachment] = {}
        self._asked = False  # True: the loop says which steps are measured
        expect_attachment(self)

    @classmethod
    def check_mode(cls, mode: Mode) -> None:
        """Raise ValueError if the penalty cannot act in this mode."""
        if mode not in ("auto", *cls.shared_penalty.modes):
            raise ValueError(f"{cls.__name__} cannot be {mode}; it can be {', '.join(cls.shared_penalty.modes)}")

    @classmethod
    def check_pace(cls, key: str) -> None:
        """Raise ValueError if the strength `key`, alpha or beta, must be a number instead of a pace."""
        penalty = cls.shared_penalty if key == "alpha" else cls.new_penalty
        if not penalty.proportional:
            raise ValueError(f"{key} of {cls.__name__} has no time constant; give a number")

    def attach(self, optimizer: Any, *, verify: bool = True) -> None:
        """Act in every step of `optimizer`, which Accelerate may have wrapped, before or after `prepare`.

        Call it again for a second optimizer of the same model (Muon for matrices, AdamW for the rest). In a wrapper
        (SAM, Lookahead, gradient surgery), the optimizer inside is meant.

        Whether the pull arrives is measured, not assumed: here in a trial on a separate weight, with a twin of the
        optimizer, and again when its parameters are exchanged (FSDP2); then in training, where weights that move
        without a hooked step, and a pull that acts twice in one, raise. It costs some 20 ms here and nothing in later
        steps.

        A step that an exception interrupts may have pulled already. Start it again with `zero_grad()` and new
        gradients: the old ones contain a coupled pull. A decoupled pull stays, as native weight decay would, and the
        repeated step pulls once more; load the weights from before where that matters.

        Args:
            optimizer: holds weights that are regularized.
            verify: make the trial. False is for optimizers that only work in their own training loop.

        Raises:
            ValueError: the optimizer decays a weight that is regularized here, shares one with another regularized
                optimizer, holds none of them, or is regularized already; it is an LBFGS and the pull is not coupled;
                the anchors differ between processes, or were captured after training began (as far as the optimizer's
                state shows it: see :func:`mtsp.anchors.capture`); a pace cannot be reached; a strength times its
                learning rate is above 1; or a pull in this mode does not arrive in its steps as it should.
        """
        chain = unwrapped(optimizer)
        optimizer = chain[-1]
        if id(optimizer) in self._attachments:
            raise ValueError("this regularizer is attached already; detach() it first, or the pull would act twice")
        hooks = getattr(optimizer, "_optimizer_step_pre_hooks", {}).values()
        if any(isinstance(getattr(hook, "__self__", None), Attachment) for hook in hooks):
            raise ValueError("another regularizer acts on this optimizer already; detach() it first")
        mode = resolve_mode(self.shared_penalty, self.mode, optimizer)
        if isinstance(optimizer, torch.optim.LBFGS) and mode != "coupled":
            raise ValueError(
                f"{type(self).__name__} is {mode} here, but LBFGS moves many times in a step and needs the pull in "
                "the gradient; use mode='coupled', or another optimizer"
            )
        attachment = self.attachment(
            optimizer, self.model, penalties=self._penalties, targets=self.targets, storage=self._storage, mode=mode
        )
        weights = [weight for bucket in attachment.buckets() for weight in bucket.weights]
        check_same_anchors(self._state["anchors"], weights)
        if verify and not isinstance(optimizer, torch.optim.LBFGS):
            wrappers = [w for w in chain[:-1] if isinstance(w, torch.optim.Optimizer) and not belongs_to_loop(w)]
            choose = partial(resolve_mode, self.shared_penalty, self.mode)
            attachment.trial = partial(
                check_arrival, [*wrappers, optimizer], mode, attach=attach_squared, choose=choose
            )
            attachment.try_out()
        if not self._attachments:
            self._warn_of_weights_left_out(optimizer)
        attachment.start(watch=verify)
        NEVER_ATTACHED.pop(self, None)
        self._attachments[id(optimizer)] = attachment

    def _warn_of_weights_left_out(self, optimizer: torch.optim.Optimizer) -> None:
        """Warn if the optimizer moves none of the pretrained weights, although they may train: perhaps only a head."""
        held = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
        shared = [
            weight
            for name, weight in named_weights(self.model).items()
            if name in self.targets and self.targets[name].anchor is not None and weight.requires_grad
        ]
        if shared and not any(id(weight) in held for weight in shared):
            warnings.warn(
                f"the optimizer holds none of the {len(shared)} pretrained weights that may train, only others: they "
                "will not move. Give it model.parameters(), or attach to the optimizer that holds them, too",
                stacklevel=3,
            )

    def detach(self) -> None:
        """Remove the hooks from all optimizers."""
        for attachment in self._attachments.values():
            attachment.stop()
        self._attachments.clear()
        self._asked = False

    def penalty(self) -> float:
        """Return the penalty at the current weights, summed in float64. For reports: training does not need it.

        Where weights are sharded, every process must call it.

        Raises:
            ValueError: a strength is a pace and the regularizer is not attached yet.
        """
        return reports.total_penalty(self._penalties, named_weights(self.model), self.targets)

    def distances(self, prefixes: Iterable[str]) -> dict[str, float]:
        """Return ||w_S - w_S0|| / ||w_S0|| for each name prefix that has anchored weights."""
        return reports.distances(named_weights(self.model), self.targets, prefixes)

    def measure_next(self) -> None:
        """Measure pull and gradient in the next step, for :meth:`report`, and forget earlier measurements.

        A report then depends on the requested step alone, so that a resumed run, which asks before the same steps,
        reports the same. Measuring costs a pass over the weights in that step and nothing in others; the first step
        after `attach` is measured without asking. Where a GradScaler skips the requested step, the next one is measured
        instead; a fused optimizer measures the skipped one, whose ratio is NaN. Where weights are sharded, every
        process must call it.
        """
        self._asked = True
        for attachment in self._attachments.values():
            attachment.measure_next()

    def report(self, prefixes: Iterable[str] = ("",)) -> dict[str, Report]:
        """Return distance, pull and time constant of the weights under each name prefix.

        Pull and gradient (as the optimizer gets it) are those of the step after :meth:`measure_next`; where that was
        never called, those of the first step after the previous `report` (or after `attach`). Where weights are
        sharded, every process must call it.
        """
        prefixes = tuple(prefixes)
        distances, fractions, result = self.distances(prefixes), self._step_fractions(), {}
        measured: dict[str, Tensor] = {}
        for attachment in self._attachments.values():
            measured |= attachment.measured
            attachment.measuring |= not self._asked
        for prefix in prefixes:
            squares = [both for name, both in measured.items() if under(name, prefix)]
            pull, gradient = torch.stack(squares).sum(0).tolist() if squares else (0.0, 0.0)
            keys = [key for key in fractions if under(key[0], prefix)]
            fraction = _mean([fractions[key] for key in [key for key in keys if key[1]] or keys])
            result[prefix] = Report(
                distances.get(prefix, float("nan")),
                (pull / gradient) ** 0.5 if 0 < gradient < float("inf") else float("nan"),
                1 / fraction if fraction else float("inf"),
            )
        return result

    def time_constant(self, prefix: str = "") -> float | None:
        """Return the number of steps in which the pull alone cuts the distance of pretrained weights to 1/e.

        It is a mean over the weights whose names begin with `prefix`, at the full learning rate, as for a
        :class:`~mtsp.regularizers.Pace`. None where there is no such number: nothing pretrained is pulled there, or
        the pull does not depend on the distance alone (coupled through Adam, L1-SP).
        """
        fractions = self._step_fractions(full=True)
        fraction = _mean([found for (name, shared), found in fractions.items() if shared and under(name, prefix)])
        return 1 / fraction if fraction > 0 else None

    def table(self) -> str:
        """Return a table with one weight per line: anchored, pulled to zero, new or free; the sums follow."""
        return reports.table(named_weights(self.model), self.targets)

    def __str__(self) -> str:
        return f"{type(self).__name__}\n{self.table()}"

    def state_dict(self) -> dict[str, str]:
        """Return what a checkpoint should hold: the regularizer's name and fingerprints of anchors and Fisher values.

        The anchors themselves are loaded from the pretrained weights again. Strengths and mode may change on resume.
        """
        return dict(self._state)

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        """Check that a resumed run pulls to the same anchors as before.

        Raises:
            ValueError: it does not; perhaps the anchors were captured after the checkpoint was loaded.
        """
        own = self.state_dict()
        wrong = [key for key in own if state.get(key) != own[key]]
        if wrong:
            raise ValueError(
                f"the checkpoint was trained with another {wrong[0]} ({state.get(wrong[0])}, here {own[wrong[0]]}); "
                "use the pretrained weights that run started from as anchors, captured before any checkpoint is loaded"
            )

    def _step_fractions(self, *, full: bool = False) -> dict[tuple[str, bool], tuple[float, int]]:
        """Return :meth:`mtsp.regularizers.hook.Attachment.step_fractions` of all attachments together."""
        found: dict[tuple[str, bool], tuple[float, int]] = {}
        for attachment in self._attachments.values():
            found |= attachment.step_fractions(full=full)
        return found


def _fingerprints(targets: Mapping[str, Target], *, uses_fisher: bool) -> dict[str, str]:
    result = {"anchors": fingerprint({n: t.anchor for n, t in targets.items() if t.anchor is not None})}
    if uses_fisher:
        result["fisher"] = fingerprint({n: t.fisher for n, t in targets.items() if t.fisher is not None})
    return result


def _mean(found: list[tuple[float, int]]) -> float:
    """Mean of the fractions, weighted by the sizes; 0 for an empty list."""
    return sum(fraction * size for fraction, size in found) / max(1, sum(size for _, size in found))
