"""Starts ranks and follows a job to its end."""
