"""Detection: annotated images, a detector on a model's backbone, its training and average precision."""
