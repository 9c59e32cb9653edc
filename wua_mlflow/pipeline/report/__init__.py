"""The report of a pipeline: markdown for MLflow's description, HTML with pictures, plain text.

Pure: from variants' metrics and a comparison to text. May import: the result types.
Tests: ``tests/pipeline/test_report.py``.
"""

from __future__ import annotations

from wua_mlflow.pipeline.report.content import Report, RoundRow, WidthsFound
from wua_mlflow.pipeline.report.figures import Row
from wua_mlflow.pipeline.report.markup import description, html_report, markdown_report
from wua_mlflow.pipeline.report.terminal import table_text, terminal_reports

__all__ = ["Report", "RoundRow", "Row", "WidthsFound", "description", "html_report",
           "markdown_report", "table_text", "terminal_reports"]
