"""The members of the family by name."""

from mtsp.regularizers.base import Anchored
from mtsp.regularizers.penalties import (
    AbsoluteDistance,
    ImportantDistance,
    ImportantRowDistance,
    RowDistance,
    SquaredDistance,
    Turning,
)


class L2SP(Anchored):
    """L2-SP: alpha/2 ||w_S - w_S0||^2 + beta/2 ||w_N||^2 over weights S with an anchor w_S0 and new weights N.

    Build it after the pretrained weights are loaded, attach it to the optimizer, and train as always::

        regularizer = L2SP(model, anchors=anchors, alpha=0.1, beta=0.01)
        regularizer.attach(optimizer)

    With `zero=True` it is L2, weight decay with two strengths. Coupled for SGD, decoupled for all others. On a fused
    SGD the kernel's own weight decay does half of the work. Arguments and errors: :class:`Anchored`.
    """

    form = SquaredDistance()


class L1SP(Anchored):
    """L1-SP: alpha ||w_S - w_S0||_1 + beta/2 ||w_N||^2.

    Proximal unless told otherwise: weights that the data does not need stay at their anchor, bit for bit. The paper's
    form is `mode="coupled"`, a sub-gradient, whose weights tremble about the anchor and never reach it; the
    authors blame that for its results (ICLR 2018 text, section 4.3.2). Arguments and errors: :class:`Anchored`.
    """

    form = AbsoluteDistance()


class GLSP(Anchored):
    """GL-SP: alpha sum_g sqrt(p_g) ||w_g - w_g0||_2 + beta/2 ||w_N||^2 over the output channels g, of p_g weights each.

    Proximal unless told otherwise: whole channels stay at their anchor, bit for bit. The paper's form is
    `mode="coupled"`. New weights have the squared norm, as in the authors' code. Arguments and errors:
    :class:`Anchored`.
    """

    form = RowDistance()


class L2SPFisher(Anchored):
    """L2-SP-Fisher: alpha/2 sum_j F_j (w_j - w_j0)^2 + beta/2 ||w_N||^2, F the diagonal of the Fisher information.

    Proximal unless told otherwise, here an implicit step, w = (w + s F w0) / (1 + s F), that no F can make explode. The
    paper's form is `mode="coupled"`; there a learning rate times alpha times the largest F above 1 is refused.
    `alpha` compares with that of L2-SP if F has mean 1, as :func:`mtsp.fisher.estimate.diagonal_fisher` gives it.
    `fisher` must have every weight that has an anchor. Arguments and errors: :class:`Anchored`.
    """

    form = ImportantDistance()


class GLSPFisher(Anchored):
    """GL-SP-Fisher: alpha sum_g sqrt(p_g) (sum_{j in g} F_j (w_j - w_j0)^2)^1/2 + beta/2 ||w_N||^2.

    Proximal unless told otherwise, solved per channel by Newton's method in float64; several times the cost of the
    others. The paper's form is `mode="coupled"`. Arguments and errors: :class:`Anchored`.
    """

    form = ImportantRowDistance()


class DirectionSP(Anchored):
    """Filter-direction L2-SP: alpha/2 of the squared part of each filter across its anchor + beta/2 ||w_N||^2.

    For convolutions that a normalization layer follows, whose length does not matter: lengths are free, directions are
    held. Coupled for SGD, decoupled for all others. Arguments and errors: :class:`Anchored`; source:
    :class:`mtsp.regularizers.penalties.Turning`.
    """

    form = Turning()
