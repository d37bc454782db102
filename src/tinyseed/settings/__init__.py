"""What can be set: frozen dataclasses, filled by the command line and by the Python functions. Nothing here needs torch."""
