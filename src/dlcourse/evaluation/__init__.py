"""Evaluation: measuring, baselines, verdict, overfitting, cross-validation, comparison."""
