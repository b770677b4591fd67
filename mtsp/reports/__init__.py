"""Reports: tables and curves of runs, and the paper's analysis of linear regression."""
