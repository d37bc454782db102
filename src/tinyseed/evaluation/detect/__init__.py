"""`evaluate detect`: a detector grown on a trunk, scored on labelled boxes. Imports models, data, errors, shapes."""
