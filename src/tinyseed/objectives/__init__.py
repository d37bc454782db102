"""Losses: pure functions from vectors to one number; and the queue."""
