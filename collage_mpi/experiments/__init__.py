"""Experiments: many runs from one file, and one table of them."""
