"""The report: an HTML page about one or several runs that works offline."""
