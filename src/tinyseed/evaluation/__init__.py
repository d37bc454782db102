"""Evaluations: how good a model is, measured on labeled images."""
