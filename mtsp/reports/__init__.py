"""Reports: what runs wrote, as tables and curves, and the paper's analysis of linear regression."""
