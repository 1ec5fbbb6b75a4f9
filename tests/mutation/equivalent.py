"""Mutants that change nothing anyone could observe, by the line that they make, and why."""

SAME: dict[tuple[str, str], str] = {}
