"""Training runs: the one training loop, and what a run needs around it."""
