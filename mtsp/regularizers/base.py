"""What every member of the family is: attached to an optimizer, it acts exactly once per optimizer step."""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mtsp.anchors import fingerprint, named_weights
from mtsp.regularizers import reports
from mtsp.regularizers.buckets import Storage
from mtsp.regularizers.checks import innermost, refuse_paces, refuse_placement, refuse_unlike_processes
from mtsp.regularizers.hook import Attachment
from mtsp.regularizers.penalties import Mode, Penalty, SquaredDistance
from mtsp.regularizers.rates import automatic
from mtsp.regularizers.reports import Report
from mtsp.regularizers.strength import Strength
from mtsp.regularizers.targets import Pull, pulls, under

_ANCHOR_DTYPES = (None, torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Anchored:
    """A pull on every convolution and linear weight: towards its anchor, or, where it has none, towards zero.

    Build a subclass, after the pretrained weights are loaded; attach it to the optimizer, and train as always.

    *Coupled* adds the penalty's gradient to the weight's before the step, which is the papers' form: it enters the
    momentum. *Decoupled* moves w before the step by lr * strength of the way, so that Adam's scaling does not touch it;
    it is to L2-SP what AdamW is to L2. *Proximal* moves w after the step to where the penalty's proximal operator says:
    exact zeros where the penalty has a kink, and no strength is too large. Its step is lr / (1 - momentum) for SGD, so
    that it ends where the coupled form would. Unlike a term in the loss, no pull is clipped, scaled by gradient
    accumulation, or part of any graph. Weights whose gradient is None (frozen, held or unused) do not move.

    Args:
        model: the network, wrapped or not. Held by reference, so that parameters that FSDP2 swaps are found again.
        anchors: w0 by parameter name. Names of biases and normalization layers of the model are passed over; the values
            are copied. With `zero=True` only the names count. None: there are none, all is pulled to zero with beta.
        alpha: strength on the weights that have an anchor: a number, a :class:`~mtsp.regularizers.Pace`, or one of
            these by name prefix (`{"flow": 0.1}`; the longest prefix wins, and every weight concerned must have one).
        beta: strength on the other convolution and linear weights, likewise.
        mode: see above. `auto` is coupled for SGD and LBFGS and decoupled for other optimizers, or proximal for
            all (but LBFGS) where the penalty has a kink or Fisher information.
        zero: pull weights with an anchor to zero instead: plain L2 with two strengths.
        every: also biases, normalization layers and embeddings: every parameter (mode 101 of the authors' code).
        fisher: the diagonal of the Fisher information by parameter name, for the penalties that weigh with it.
        anchor_dtype: keep the anchors in this dtype; bfloat16 halves their memory, and pulls to rounded anchors.
        offload: keep the anchors in CPU memory (pinned, beside a GPU) and copy them over block by block.

    Raises:
        ValueError: an anchor names nothing in the model, or has another shape or values that are not finite, or no
            anchor concerns a convolution or linear weight, or a strength is negative or missing, or the penalty cannot
            act where `mode` says, or lacks its Fisher information. Passing over it would leave a renamed module,
            or a wrong checkpoint, without regularization and without a word.
    """

    form: ClassVar[Penalty]
    """The penalty of the weights that have an anchor."""
    new_form: ClassVar[Penalty] = SquaredDistance()
    """The penalty of new weights: 1/2 ||w||^2."""
    attachment: ClassVar[type[Attachment]] = Attachment
    """How it acts in a step."""

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
        refuse_placement(type(self).__name__, self.form, mode)
        if (fisher is not None) != self.form.weighs:
            what = "needs `fisher`, see mtsp.fisher.estimate" if self.form.weighs else "does not use `fisher`"
            raise ValueError(f"{type(self).__name__} {what}")
        if anchor_dtype not in _ANCHOR_DTYPES:
            raise ValueError(f"anchor_dtype must be float64, float32, bfloat16 or float16, got {anchor_dtype}")
        self.model = model
        self.mode: Mode = mode
        self.pulls = pulls(model, anchors, alpha, beta, zero=zero, every=every, fisher=fisher)
        self._forms = {True: self.form, False: self.new_form}
        refuse_paces(type(self).__name__, self._forms, self.pulls)
        self._state = {"regularizer": type(self).__name__, **_fingerprints(self.form, self.pulls)}
        if anchor_dtype is not None:
            self.pulls = {
                name: pull if pull.anchor is None else pull._replace(anchor=pull.anchor.to(anchor_dtype))
                for name, pull in self.pulls.items()
            }
        self._storage = Storage(anchor_dtype, offload)
        self._attachments: dict[int, Attachment] = {}
        self._asked = False  # whether a loop says which steps are measured

    def attach(self, optimizer: Any) -> None:
        """Act in every step of `optimizer`, which may be wrapped by Accelerate, before or after `prepare`.

        Call it again for a second optimizer of the same model (Muon for matrices, AdamW for the rest).

        A step that an exception cuts short may have pulled already. Begin again with `zero_grad()` and new gradients:
        a coupled pull is in the old ones. A decoupled pull that was made stays made, as native weight decay would, so
        the step that is made again pulls once more; load the weights from before where that matters.

        Raises:
            ValueError: the optimizer decays a weight that is pulled here (two regularizers on one weight), or shares
                one with an optimizer that is regularized, or holds no weight that is pulled here, or is regularized
                already, or is an LBFGS and the pull not coupled, or the anchors differ between processes, or were
                captured after training began (as far as its state shows: see :func:`mtsp.anchors.capture`), or a
                strength times its learning rate is above 1.
        """
        optimizer = innermost(optimizer)
        if id(optimizer) in self._attachments:
            raise ValueError("this regularizer is attached already; detach() it first, or the pull would act twice")
        hooks = getattr(optimizer, "_optimizer_step_pre_hooks", {}).values()
        if any(isinstance(getattr(hook, "__self__", None), Attachment) for hook in hooks):
            raise ValueError("another regularizer acts on this optimizer already; detach() it first")
        place = self.acts(optimizer)
        if isinstance(optimizer, torch.optim.LBFGS) and place != "coupled":
            raise ValueError(
                f"{type(self).__name__} is {place} here, but LBFGS moves many times in a step and needs the pull in "
                "the gradient; use mode='coupled', or another optimizer"
            )
        attachment = self.attachment(
            optimizer, self.model, forms=self._forms, pulls=self.pulls, storage=self._storage, place=place
        )
        weights = [weight for bucket in attachment.buckets() for weight in bucket.weights]
        refuse_unlike_processes(self._state["anchors"], weights)
        attachment.start()
        self._attachments[id(optimizer)] = attachment

    def detach(self) -> None:
        """Act no more."""
        for attachment in self._attachments.values():
            attachment.stop()
        self._attachments.clear()
        self._asked = False  # the next loop may say nothing

    def penalty(self) -> float:
        """Return the penalty at the current weights, summed in float64. For reports: training never needs it.

        Every process must call it where weights are sharded.

        Raises:
            ValueError: a strength is a pace, which attaching makes a number.
        """
        return reports.penalty(self._forms, named_weights(self.model), self.pulls)

    def distances(self, prefixes: Iterable[str]) -> dict[str, float]:
        """Return ||w_S - w_S0|| / ||w_S0|| for each name prefix under which something is anchored."""
        return reports.distances(named_weights(self.model), self.pulls, prefixes)

    def measure_next(self) -> None:
        """Measure pull and gradient in the next step, for :meth:`report`; what was measured before is forgotten.

        A report then depends on the step that was asked for alone, so that a resumed run, which asks before the same
        steps, tells what the whole run tells. It costs a pass over the weights in that step, and nothing in others, but
        for the first after `attach`, which is measured unasked. Where a GradScaler skips the step that was asked for,
        the next one is measured in its place; a fused optimizer sees the skipped one, whose ratio is NaN. Every process
        must ask where weights are sharded.
        """
        self._asked = True
        for attachment in self._attachments.values():
            attachment.measure_next()

    def report(self, prefixes: Iterable[str] = ("",)) -> dict[str, Report]:
        """Return how strongly the weights under each prefix are held.

        Pull and gradient, as the optimizer gets it, are those of the step that followed :meth:`measure_next`; where
        that was never called, of the first step after the previous call of `report` (or after `attach`). Every process
        must ask where weights are sharded.
        """
        prefixes = tuple(prefixes)
        near, shares, result = self.distances(prefixes), self._known_shares(), {}
        measured: dict[str, Tensor] = {}
        for attachment in self._attachments.values():
            measured |= attachment.measured
            attachment.measuring |= not self._asked
        for prefix in prefixes:
            squares = [both for name, both in measured.items() if under(name, prefix)]
            pull, gradient = torch.stack(squares).sum(0).tolist() if squares else (0.0, 0.0)
            here = [name for name in shares if under(name, prefix)]
            share = _mean([shares[name] for name in [n for n in here if self.pulls[n].shared] or here])
            result[prefix] = Report(
                near.get(prefix, float("nan")),
                (pull / gradient) ** 0.5 if 0 < gradient < float("inf") else float("nan"),
                1 / share if share else float("inf"),
            )
        return result

    def time_constant(self, prefix: str = "") -> float | None:
        """Return after how many steps the pull alone leaves 1/e of the distance of pretrained weights under `prefix`.

        At the full learning rate, as for a :class:`~mtsp.regularizers.Pace`. None where there is no such number:
        nothing pretrained there is pulled, or the pull is not that of a distance alone (coupled through Adam, L1-SP).
        """
        shares = self._known_shares(full=True)
        share = _mean([shares[name] for name in shares if self.pulls[name].shared and under(name, prefix)])
        return 1 / share if share > 0 else None

    def table(self) -> str:
        """Return what is anchored, pulled to zero, new and free, one weight a line, and the sums below."""
        return reports.table(named_weights(self.model), self.pulls)

    def __str__(self) -> str:
        return f"{type(self).__name__}\n{self.table()}"

    def acts(self, optimizer: Any) -> Mode:
        """Return where the pull enters a step of `optimizer`."""
        if self.mode != "auto":
            return self.mode
        optimizer = innermost(optimizer)
        if isinstance(optimizer, torch.optim.LBFGS) and "coupled" in self.form.modes:
            return "coupled"
        return automatic(self.form, is_sgd=isinstance(optimizer, torch.optim.SGD))

    def state_dict(self) -> dict[str, str]:
        """Return what a checkpoint should hold: which regularizer, and the fingerprint of its anchors, not the anchors.

        Anchors belong to the pretrained weights and are loaded from there again; of Fisher information likewise. The
        strengths and the mode may change.
        """
        return dict(self._state)

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        """Check that a resumed run pulls to the anchors of the run before.

        Raises:
            ValueError: it does not; weights that were resumed may have been captured instead of the pretrained ones.
        """
        own = self.state_dict()
        wrong = [key for key in own if state.get(key) != own[key]]
        if wrong:
            raise ValueError(
                f"the checkpoint was trained with another {wrong[0]} ({state.get(wrong[0])}, here {own[wrong[0]]}); "
                "anchor to the pretrained weights that run began with, captured before any checkpoint is loaded"
            )

    def _known_shares(self, *, full: bool = False) -> dict[str, tuple[float, int]]:
        """By weight, the share of the distance that a step takes away, and the weight's size."""
        found: dict[str, tuple[float, int]] = {}
        for attachment in self._attachments.values():
            found |= attachment.known_shares(full=full)
        return found


def _fingerprints(form: Penalty, pulls: Mapping[str, Pull]) -> dict[str, str]:
    anchors = {name: pull.anchor for name, pull in pulls.items() if pull.anchor is not None}
    if not form.weighs:
        return {"anchors": fingerprint(anchors)}
    important = {name: pull.importance for name, pull in pulls.items() if pull.importance is not None}
    return {"anchors": fingerprint(anchors), "fisher": fingerprint(important)}


def _mean(found: list[tuple[float, int]]) -> float:
    """The mean of shares of weights of these sizes; 0 where there are none."""
    return sum(share * size for share, size in found) / max(1, sum(size for _, size in found))
