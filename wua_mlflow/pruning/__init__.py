"""Cutting units out of a trained network: what goes together, what matters, the cut, its check."""
