"""What the commands print: the figures in columns, the verdict last."""

from tests.report.cases import SAVES, report_with
from wua_mlflow.cli.output import figures_text, pipeline_text


def test_the_terminals_table_is_aligned_and_the_verdict_last():
    lines = figures_text(report_with(SAVES)).splitlines()
    ends = {line.rindex("0.8900") + 6 for line in lines if "0.8900" in line}
    ends |= {line.rindex(" 42") + 3 for line in lines if line.startswith("FLOPs, one")}
    assert len(ends) == 1
    text = pipeline_text(report_with(SAVES))
    assert text.index("Accuracy: 0.9500 on the training data") < text.index("Verdict: As good w")
    *_, verdict, short = text.split("\n\n")
    assert verdict.endswith("The slim model: 1.4× fewer FLOPs, 1.4× fewer parameters.")
    assert short == f"In short: {report_with(SAVES).in_short}"
    assert pipeline_text(report_with(SAVES, looks=3)).count("used for 3 verdicts") == 1
