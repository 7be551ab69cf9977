"""Tracking: the MLflow store, the run, the Lightning logger, the environment, the UI."""
