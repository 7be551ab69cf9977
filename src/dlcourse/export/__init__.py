"""Export of trained models to MLflow."""
