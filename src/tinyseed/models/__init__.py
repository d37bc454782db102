"""Views become unit vectors. May import tinyseed.shapes and tinyseed.errors only."""
