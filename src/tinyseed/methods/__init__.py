"""Ways to train a network, one file each: its settings, its class, and the record that describes it. See catalog.py."""
