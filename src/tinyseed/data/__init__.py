"""An image file becomes views. May import tinyseed.shapes and tinyseed.errors only."""
