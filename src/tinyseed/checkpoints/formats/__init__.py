"""Formats of public checkpoints: one record each, listed in catalog.py."""
