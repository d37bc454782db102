"""Studies: grids of runs whose result is a table, such as those of the SEED paper, as data, and what runs them."""
