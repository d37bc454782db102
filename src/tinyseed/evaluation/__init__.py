"""Is the model any good? May import methods, models, data, objectives and below."""
