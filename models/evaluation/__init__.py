"""Evaluation of a model on held-out and drawn images."""
