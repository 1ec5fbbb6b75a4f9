"""One ledger for all jobs of a run: who does which positions, and which rows count."""
