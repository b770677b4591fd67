"""Fisher information of any model: how much each weight matters to its predictions."""
