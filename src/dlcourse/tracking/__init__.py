"""Tracking: the MLflow store, its runs, the Lightning logger, the environment of a run, and MLflow's web pages.

MLflow reads these variables when it is imported, so that this package comes before ``import mlflow``. Those that are
set already stay.
"""

import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# With MLflow's own 7 retries and 120 s each call would take minutes when a server is gone. A run sends later what could
# not be written, so that few retries are enough.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # no warning where git is not installed
