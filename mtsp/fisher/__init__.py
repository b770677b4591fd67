"""Diagonal Fisher information of any model: how much each weight affects the predictions."""

from mtsp.fisher.estimate import FisherSum, diagonal_fisher, fisher_of, load_fisher, mean_one, save_fisher

__all__ = ["FisherSum", "diagonal_fisher", "fisher_of", "load_fisher", "mean_one", "save_fisher"]
