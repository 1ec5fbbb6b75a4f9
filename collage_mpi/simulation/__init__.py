"""The job on virtual time."""
