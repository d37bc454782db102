"""Networks of public checkpoints that no library has."""
