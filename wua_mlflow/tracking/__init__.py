"""MLflow: the contract of names, all writing to runs and all reading of them."""

from wua_mlflow.tracking.log_results import (
    log_flops,
    log_latency,
    log_model,
    log_usage,
    log_verdict,
)
from wua_mlflow.tracking.monitor import UsageMonitor
from wua_mlflow.tracking.run_table import pareto
from wua_mlflow.tracking.runs import best, compare_runs, history, runs

__all__ = [
    "UsageMonitor", "best", "compare_runs", "history", "log_flops", "log_latency", "log_model",
    "log_usage", "log_verdict", "pareto", "runs",
]
