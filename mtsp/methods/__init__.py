"""Methods beyond the penalty: losses on features (DELTA, BSS) and weight interpolation (WiSE-FT)."""
