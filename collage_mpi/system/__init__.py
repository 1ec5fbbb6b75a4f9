"""This process and its host."""
