"""What can be set: frozen dataclasses, filled by the command line and the Python functions. None needs torch."""
