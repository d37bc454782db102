"""What a training step does: views to a loss, then the change of state. One file per method.

May import objectives, models, data and below. The closed union of methods is the engine's `match` (engine/build.py).
"""
