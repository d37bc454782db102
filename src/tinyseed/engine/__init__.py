"""The only training loop. May import methods, evaluate and below."""
