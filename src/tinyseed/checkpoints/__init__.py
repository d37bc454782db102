"""Public checkpoints and saved runs: a model is named, and its encoder comes back."""
