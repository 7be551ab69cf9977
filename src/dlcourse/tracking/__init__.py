"""Tracking: the MLflow store, the run, the Lightning logger, the environment, the UI.

Importing it sets what MLflow reads from the environment when it is itself imported, unless it is set already.
"""

import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# A server that is gone would hold each call for minutes. What it misses waits here, and is sent when it answers again.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
