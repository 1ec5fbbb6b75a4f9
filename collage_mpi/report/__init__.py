"""Writes the report: an HTML page about one or several runs, which works offline."""
