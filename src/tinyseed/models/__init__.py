"""From images to unit vectors: backbones, projectors, encoders and the frozen teacher."""
