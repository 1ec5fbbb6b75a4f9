"""Runs many runs from one file, and makes tables of their results."""
