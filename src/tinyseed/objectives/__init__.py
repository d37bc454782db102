"""Vectors become one number: pure functions. May import tinyseed.shapes and tinyseed.errors only."""
