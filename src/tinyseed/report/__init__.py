"""One self-contained HTML page per run, from its files alone."""
