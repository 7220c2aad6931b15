"""What goes through a pipeline: trees, rows, hyperparameters, random numbers, checks."""
