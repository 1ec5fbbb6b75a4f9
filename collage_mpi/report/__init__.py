"""The report: a page of one or several runs that opens without a network."""
