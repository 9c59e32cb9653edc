"""Settings by the names that earlier versions had: in files, and in what runs have logged."""

import pytest

from tests.mistakes import line_of
from wua_mlflow.config import ConfigError, Settings, load_settings, unused_settings
from wua_mlflow.old_settings import GONE, of_today

EVERYTHING = """\
data: rows.csv
target: y
groups: patient
drop_columns: [id]
table: {impute: mean, drop_columns: [day]}
slim_hidden: auto
width_method: rank
search_runs: 6
search_seconds: 90.0
budget: flops
effective_rank: true
seeds: auto
max_seeds: 40
"""


def written(tmp_path, text):
    path = tmp_path / "old.yaml"
    path.write_text(text)
    return str(path)


def test_a_file_of_an_earlier_version_means_what_it_meant(tmp_path):
    settings = load_settings(written(tmp_path, EVERYTHING))
    assert settings == load_settings(None, {
        "data": "rows.csv", "target": "y", "slim_hidden": "rank", "slim_epochs": "flops",
        "limit": "6,90.0s", "seeds": "5-40", "table": {
            "groups": "patient", "impute": "mean", "drop_columns": ["day", "id"]}})
    assert settings.given == {"data", "target", "table", "slim_hidden", "slim_epochs", "limit",
                              "seeds"}
    assert load_settings(written(tmp_path, "model_uri: models:/a/1")).run_id == "models:/a/1"


def test_a_run_of_an_earlier_version_has_every_setting(tmp_path):
    """Those at their old defaults say nothing; others held only where they were asked."""
    defaults = ("width_method: auto\nsearch_runs: 12\nbudget: epochs\neffective_rank: false\n"
                "seeds: auto\nmax_seeds: 20\n")
    assert load_settings(written(tmp_path, defaults)) == Settings()
    assert unused_settings(written(tmp_path, defaults), "compare") == []
    held = "slim_hidden: [7]\nwidth_method: search\nseeds: 10\nmax_seeds: 40\n"
    assert load_settings(written(tmp_path, held)) == Settings(slim_hidden=(7,), seeds=10)


@pytest.mark.parametrize(("old", "new"), [
    ({"width_method": "search"}, {"slim_hidden": "search"}),
    ({"width_method": "search", "slim_hidden": "rank"}, {"slim_hidden": "rank"}),
    ({"budget": "flops"}, {"slim_epochs": "flops"}), ({"budget": "epochs"}, {}),
    ({"max_seeds": 20}, {"seeds": "auto"}), ({"max_seeds": "8"}, {"seeds": "5-8"}),
    ({"search_runs": "4"}, {"limit": "4"}), ({"search_seconds": 0.5}, {"limit": "0.5s"}),
    ({"search_runs": 4, "limit": "9"}, {"limit": "9"}),
    ({"model_uri": "models:/a/1"}, {"run_id": "models:/a/1"}), ({"effective_rank": "true"}, {}),
    ({"groups": "who"}, {"table": {"groups": "who"}}),
    ({"drop_columns": "id"}, {"table": {"drop_columns": "id"}}),
    ({"drop_columns": "id", "table": "impute: mean"},
     {"table": {"impute": "mean", "drop_columns": ["id"]}}),
    (dict.fromkeys(GONE, ""), {}), ({"lr": 1}, {"lr": 1}),
])
def test_each_old_name(old, new):
    assert of_today(old) == new


@pytest.mark.parametrize(("text", "message"), [
    ("budget: flops\nslim_epochs: 5", "config: .*: budget: flops sets the epochs of the slim "
     "network, so expected no slim_epochs, but got 5$"),
    ("max_seeds: 4", "seeds: expected auto, .*, but got '5-4'$"),
    ("search_runs: many", "limit: expected .*, but got 'many'$"),
    ("width_method: best", "slim_hidden: expected auto, .*, but got 'best'$"),
    ("groups: 5", "table: groups: expected the name of a column, but got 5$"),
])
def test_what_was_wrong_is_wrong(text, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        load_settings(written(tmp_path, text))


def test_what_a_new_option_says_holds_over_an_old_file(tmp_path):
    path = written(tmp_path, EVERYTHING)
    settings = load_settings(path, {"slim_hidden": "9", "slim_epochs": 3, "seeds": 7, "limit": "4",
                                    "groups": "doctor"})
    assert (settings.slim_widths, settings.slim_epochs, settings.seeds, settings.limit) == (
        (9,), 3, 7, "4")
    assert settings.table_settings.groups == "doctor"


def test_an_old_option_is_refused_where_it_stands(capsys):
    assert line_of(["run", "--config", "digits", "--max-seeds", "40"], 2, capsys) == (
        "--max-seeds: no option any more; write --seeds 5-40")
