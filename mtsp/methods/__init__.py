"""Fine-tuning methods other than regularizers: losses on features (DELTA, BSS) and weight interpolation (WiSE-FT)."""

from mtsp.methods.feature_losses import Delta, batch_spectral_shrinkage
from mtsp.methods.wise_ft import along, interpolated

__all__ = ["Delta", "along", "batch_spectral_shrinkage", "interpolated"]
