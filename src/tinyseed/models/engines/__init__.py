"""Ways to compute a frozen backbone; `base.py` has the protocol, `catalog.py` the list."""
