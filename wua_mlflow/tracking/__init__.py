"""MLflow: the contract of names, all writing to runs and all reading of them."""

from wua_mlflow.tracking.log import log_flops, log_usage
from wua_mlflow.tracking.run_table import pareto
from wua_mlflow.tracking.runs import best, compare_runs, history, runs

__all__ = ["best", "compare_runs", "history", "log_flops", "log_usage", "pareto", "runs"]
