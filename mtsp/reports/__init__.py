"""Report on runs: tables, curves and sweeps, and the paper's analysis of linear regression."""
