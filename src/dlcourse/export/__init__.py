"""Export: the model that leaves the house, verified."""
