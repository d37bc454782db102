"""The report: one self-contained HTML page per run, built from the run's files alone."""
