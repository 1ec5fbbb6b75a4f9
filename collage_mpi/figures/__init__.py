"""Draws figures of runs and experiments."""
