"""Detects lost ranks, in several layers."""
