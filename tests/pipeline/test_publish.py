"""What a pipeline's run shows: the report's files, the description, which pictures there are."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path

from PIL import Image

from tests.pipeline.conftest import Finished
from tests.report.cases import variant, widths_of_a_search
from wua_mlflow.pipeline.publish import report_pictures
from wua_mlflow.results import LayerChange
from wua_mlflow.tracking.ui_view import LATEST_KEY

VARIANTS = [variant("old", (10,), metrics={"flops/forward": 60, "accuracy/test": 0.9}),
            variant("new", (7,), metrics={"flops/forward": 42, "accuracy/test": 0.89})]


def test_the_files_of_a_pipeline(usecase: Finished) -> None:
    client, run_id = usecase.client, usecase.outcome.run_id
    names = {one.path for one in client.list_artifacts(run_id)}
    assert {"report.md", "report.html", "config.yaml", "plots"} <= names
    page = Path(client.download_artifacts(run_id, "report.html")).read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") >= 4
    assert "Yes" not in page.split("<h1>")[1].split("</h1>")[0]
    with Image.open(client.download_artifacts(run_id, "plots/comparison.png")) as picture:
        assert picture.width > 800
    tags = client.get_run(run_id).data.tags
    assert tags["mlflow.runName"] == "usecase 10 → 7"
    assert tags["wua.result"] == usecase.run("slim").info.run_id
    experiment = client.get_experiment(usecase.store.experiment_id)
    assert any(LATEST_KEY in name for name in experiment.tags)


def test_a_variant_as_plain_data(usecase: Finished) -> None:
    network, plain = usecase.outcome.variants[-1], usecase.outcome.slimmed.result.variant
    assert plain.layer_units == {"fc1": 7, "fc2": 1}
    assert (plain.run_id, plain.kind, plain.widths) == (network.run_id, "slim", (7,))
    assert plain.test_score == network.test.score
    assert plain.metrics.items() <= usecase.run("slim").data.metrics.items()
    assert plain.epochs_trained == 60


def test_only_pictures_that_there_are_data_for(usecase: Finished) -> None:
    report = usecase.outcome.report
    assert report is not None
    bare = replace(report, layers=(), widths=None, usages={}, names=["old", "new"])
    assert set(report_pictures(bare, VARIANTS, every=VARIANTS)) == {"comparison", "pareto"}
    unknown = [replace(one, metrics={"accuracy/test": 0.9}) for one in VARIANTS]
    assert set(report_pictures(bare, unknown, every=unknown)) == {"comparison"}
    widths = widths_of_a_search()
    rich = replace(bare, layers=[LayerChange("fc1", 10, 7)], widths=widths)
    found = report_pictures(rich, VARIANTS, every=VARIANTS)
    assert set(found) == {"comparison", "pareto", "changes", "curves", "trials"}
    for png in found.values():
        with Image.open(BytesIO(png)) as picture:
            assert picture.format == "PNG"
    alone = replace(widths.searched, trials=widths.searched.trials[:1])
    assert set(report_pictures(replace(bare, widths=replace(widths, searched=alone)), VARIANTS,
                               every=VARIANTS)) == {"comparison", "pareto", "curves"}
