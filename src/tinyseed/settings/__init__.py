"""Settings: frozen, complete descriptions of what is to be done. They import no torch, so that `--help` is quick."""
