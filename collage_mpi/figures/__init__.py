"""Draws figures of runs."""
