"""Training: the Trainer, its hardware and callbacks, fit and resume, overfitting one batch."""
