"""Evaluation: metrics, baselines, verdict, overfitting, cross-validation, comparison."""
