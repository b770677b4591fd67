"""The -SP family by name: each regularizer is a penalty on the distance to the anchors, and a name."""

from mtsp.regularizers.base import Regularizer
from mtsp.regularizers.penalties import (
    AbsoluteDistance,
    DirectionDistance,
    FisherDistance,
    FisherRowDistance,
    RowDistance,
    SquaredDistance,
)


class L2SP(Regularizer):
    """L2-SP: alpha/2 ||w_S - w_S0||^2 + beta/2 ||w_N||^2 over weights S with an anchor w_S0 and new weights N.

    Build it after the pretrained weights are loaded, attach it to the optimizer, and train as always::

        regularizer = L2SP(model, anchors=anchors, alpha=0.1, beta=0.01)
        regularizer.attach(optimizer)

    With `zero=True` it is L2, weight decay with two strengths. Coupled for SGD, decoupled for all others. On a fused
    SGD, the kernel's own weight decay computes part of the pull. Arguments and errors: :class:`Regularizer`.
    """

    shared_penalty = SquaredDistance()


class L1SP(Regularizer):
    """L1-SP: alpha ||w_S - w_S0||_1 + beta/2 ||w_N||^2.

    Proximal by default: weights that the data does not move stay at their anchor, bit for bit. The paper's form is
    `mode="coupled"`, a subgradient, whose weights oscillate about the anchor without reaching it; the authors give that
    as the reason for its results (ICLR 2018 text, section 4.3.2). Arguments and errors: :class:`Regularizer`.
    """

    shared_penalty = AbsoluteDistance()


class GLSP(Regularizer):
    """GL-SP: alpha sum_g sqrt(p_g) ||w_g - w_g0||_2 + beta/2 ||w_N||^2 over the output channels g, of p_g weights each.

    Proximal by default: whole channels stay at their anchor, bit for bit. The paper's form is
    `mode="coupled"`. New weights have the squared norm, as in the authors' code. Arguments and errors:
    :class:`Regularizer`.
    """

    shared_penalty = RowDistance()


class L2SPFisher(Regularizer):
    """L2-SP-Fisher: alpha/2 sum_j F_j (w_j - w_j0)^2 + beta/2 ||w_N||^2, F the diagonal of the Fisher information.

    Proximal by default: an implicit step, w = (w + s F w0) / (1 + s F), which is stable for every F. The paper's form
    is `mode="coupled"`; it is refused where learning rate times alpha times the largest F is above 1.
    `alpha` compares with that of L2-SP if F has mean 1, as :func:`mtsp.fisher.estimate.diagonal_fisher` gives it.
    `fisher` must contain every weight that has an anchor. Arguments and errors: :class:`Regularizer`.
    """

    shared_penalty = FisherDistance()


class GLSPFisher(Regularizer):
    """GL-SP-Fisher: alpha sum_g sqrt(p_g) (sum_{j in g} F_j (w_j - w_j0)^2)^1/2 + beta/2 ||w_N||^2.

    Proximal by default, solved per channel by Newton's method in float64, at several times the cost of the others.
    The paper's form is `mode="coupled"`. Arguments and errors: :class:`Regularizer`.
    """

    shared_penalty = FisherRowDistance()


class DirectionSP(Regularizer):
    """Filter-direction L2-SP: alpha/2 of the squared part of each filter across its anchor + beta/2 ||w_N||^2.

    For convolutions that a normalization layer follows: filters are pulled to their pretrained direction, their length
    is free. Coupled for SGD, decoupled for all others. Source:
    :class:`mtsp.regularizers.penalties.DirectionDistance`. Arguments and errors: :class:`Regularizer`.
    """

    shared_penalty = DirectionDistance()
