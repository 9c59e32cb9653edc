"""Settings: precedence, strictness, one-line errors."""

import pytest
import yaml

from wua_mlflow import config
from wua_mlflow.config import ConfigError, Settings, load_settings, settings_yaml
from wua_mlflow.usage import criteria as criteria_module


def test_usecase_is_the_tutorials_recipe_but_not_for_other_data():
    """MLproject always passes config=usecase on; a user's file must not be trained by it."""
    settings = load_settings()
    assert (settings.hidden, settings.epochs, settings.slim_epochs) == ((10,), 50, 60)
    assert (settings.lr, settings.batch_size, settings.seed) == (0.01, "full", 42)
    assert (settings.data, settings.slim_hidden, settings.seeds) == ("usecase", "effective", 20)
    assert load_settings("usecase", {"epochs": "", "hidden": None}) == settings
    assert load_settings("usecase", {"data": "mine.csv", "target": "y"}) == Settings(
        data="mine.csv", target="y")
    assert load_settings("digits", {"data": "mine.csv"}).seeds == load_settings("digits").seeds


@pytest.mark.parametrize("name", config.config_names())
def test_every_shipped_configuration_is_valid_and_says_only_what_differs_or_matters(name):
    raw = yaml.safe_load((config.CONFIGS / f"{name}.yaml").read_text())
    settings = load_settings(name)
    assert set(raw) <= set(Settings.model_fields)
    assert settings.data == name


def test_explicit_beats_yaml_beats_schema_and_settings_know_which_were_given(tmp_path):
    """The default configuration is not given; beside a run the model is the run's own."""
    path = tmp_path / "own.yaml"
    path.write_text("epochs: 3\nmodel: a:b\nseed: 1\nmargin: 0.1\nlayers: [fc1]\n")
    assert load_settings(None, {"lr": 1, "target": ""}).given == {"lr"}
    settings = load_settings(str(path), {"lr": 1})
    assert settings.given == {"epochs", "model", "seed", "margin", "layers", "lr"}
    assert (settings.epochs, settings.lr, settings.optimizer) == (3, 1.0, "adam")
    assert load_settings(str(path), {"epochs": "9"}).epochs == 9
    assert load_settings(str(path), {}, "compare").given == {"seed", "margin"}
    beside = load_settings(str(path), {"run_id": "r", "seed": 2}, "compare")
    assert (beside.given, beside.seed) == ({"run_id", "seed", "margin"}, 2)


@pytest.mark.parametrize(("command", "values", "message"), [
    ("analyze", {"run_id": "r", "layers": "a"}, "run_id: a variant is analysed with its own model "
     "and data, so expected nothing like layers beside it; a model of your own: wua analyze "
     "--model package.module:factory --data DATA"),
    ("analyze", {"run_id": "r", "groups": "who"}, "run_id: a variant is analysed with its own "
     "model and data, so expected nothing like groups beside it; a model of your own: wua analyze "
     "--model package.module:factory --data DATA"),
    ("slim", {"run_id": "models:/a/1", "train": "a:b", "seed": 1}, "run_id: a variant is "
     "slimmed with its own model and data, so expected nothing like seed beside it; a model of "
     "your own: wua slim --model package.module:factory --data DATA"),
])
def test_nothing_of_its_own_beside_a_run(command, values, message):
    with pytest.raises(ConfigError) as caught:
        load_settings(None, values, command)
    assert str(caught.value) == message


def test_widths_and_criteria_are_read_from_text_numbers_and_lists():
    for value, widths in (("64,32", (64, 32)), ("10", (10,)), (10, (10,)), ([8, 4], (8, 4)),
                          (" 5 , 6", (5, 6))):
        assert load_settings(None, {"hidden": value}).hidden == widths
    for value, criteria in (("taylor", "taylor"), ("output, wanda", "output,wanda"),
                            (["input", "mine:rule"], "input,mine:rule")):
        assert load_settings(None, {"criterion": value}).criterion == criteria
    assert tuple(criteria_module.CRITERIA) == config.CRITERIA


def test_a_table_is_described_in_any_form():
    """Braces or none, a mapping or text; beside it or in it; what either drops is dropped."""
    for table in ("impute: mean, drop_columns: [id]", "{impute: mean, drop_columns: id}",
                  {"impute": "mean", "drop_columns": ["id"]}):
        settings = load_settings(None, {"data": "a.csv", "table": table, "drop_columns": "b, id"})
        assert settings.table_settings.impute == "mean"
        assert settings.table_settings.drop_columns == ("id", "b")
        assert settings.table_settings.categories == 20
    assert load_settings(None, {"table": "impute: 3"}).table_settings.impute == 3.0
    assert load_settings(None, {}).table_settings.impute == "median"


def test_a_table_is_described_in_a_file_and_beside_it(tmp_path):
    """Key by key; a run's params say it in one line, which reads the same."""
    path = tmp_path / "own.yaml"
    path.write_text("data: a.csv\ntable: {impute: mean, groups: who, drop_columns: [a]}\n")
    given = {"table": "impute: drop, categories: 9", "drop_columns": "b"}
    settings = load_settings(str(path), given)
    table = settings.table_settings
    assert (table.groups, table.drop_columns, table.impute, table.categories) == (
        "who", ("a", "b"), "drop", 9)
    assert load_settings(str(path), {"groups": "where"}).table_settings.groups == "where"
    assert settings.given == {"data", "table"}
    assert load_settings(str(path), given, "compare").given == {"data", "table"}
    assert config.table_text(table.text) == table.text == (
        "groups: who, drop_columns: [a, b], impute: drop, categories: 9")
    assert load_settings(None, {}).table_settings.text == ""


@pytest.mark.parametrize(("limit", "runs", "seconds"), [
    (None, 12, None), (8, 8, None), ("8", 8, None), ("600s", 12, 600), ("30m", 12, 1800),
    ("1.5h", 12, 5400), ("8, 30m", 8, 1800), ("2h,3", 3, 7200), ("1e-6s", 12, 1e-6)])
def test_how_much_may_be_trained(limit, runs, seconds):
    settings = load_settings(None, {"limit": limit})
    assert (settings.search_runs, settings.search_seconds) == (runs, seconds)
    longer = load_settings(None, {"limit": settings.within(90).limit})
    assert (longer.search_runs, longer.search_seconds) == (runs, 90)


@pytest.mark.parametrize(("slim_hidden", "method", "widths"), [
    ("auto", "auto", None), ("40, 20", "given", (40, 20)), (7, "given", (7,)),
    *((method, method, None) for method in config.WIDTH_METHODS)])
def test_widths_or_how_they_are_found(slim_hidden, method, widths):
    settings = load_settings(None, {"slim_hidden": slim_hidden})
    assert (settings.width_method, settings.slim_widths) == (method, widths)


@pytest.mark.parametrize(("what", "text", "kinds"), [
    (None, "units,heads", ("units", "heads")),
    ("stream, units", "units,stream", ("units", "stream")),
    (["heads", "multiple_of=8"], "heads", ("heads",)),
    ("multiple_of=1", "multiple_of=1", ("units", "heads"))])
def test_what_may_be_cut(what, text, kinds):
    settings = load_settings(None, {"what": what})
    assert (settings.what, settings.what_to_cut.kinds) == (text, kinds)


def test_there_are_as_many_settings_as_say_different_things():
    assert len(Settings.model_fields) == 42


def test_settings_are_written_as_yaml_that_gives_the_same(tmp_path):
    settings = load_settings("digits", {"slim_hidden": "20,10", "patience": 3, "gate": "true",
                                        "state": "a.safetensors", "drop_columns": "id",
                                        "what": "stream,multiple_of=16,same_widths=no",
                                        "table": "impute: {a: 3, b: mean, c: none at all}"})
    path = tmp_path / "config.yaml"
    path.write_text(settings_yaml(settings))
    assert load_settings(str(path)) == settings
    assert yaml.safe_load(settings_yaml(settings, ["state", "loss"])) == {"state": "a.safetensors"}


CRITERION = ("criterion: expected output, input, wanda, magnitude, taylor, "
             "package.module:function, or several of them, each once")
LIMIT = ("limit: expected a number of widths of at least 2, a time, e.g. 600s, 30m or 2h, or both: "
         "8,30m")
WHAT = ("what: expected units, heads or stream, or several of them, each once, multiple_of=N, "
        "same_widths or same_widths=no, e.g. units,heads,multiple_of=16")
TABLE = ("table: expected groups, drop_columns, impute and categories, e.g. impute: mean, "
         "categories: 10")
IMPUTE = ("table: impute: expected median, mean, most_frequent, drop, or a number; or one of them, "
          "or a text, by column")
BAD = [
    ({"hidden": "-1"}, "hidden: expected whole numbers of at least 1, e.g. 64,32, but got '-1'"),
    ({"epochs": "0"}, "epochs: expected a whole number of at least 1, but got '0'"),
    ({"epochs": "abc"}, "epochs: expected a whole number, but got 'abc'"),
    ({"lr": "nan"}, "lr: expected a number above 0, but got 'nan'"),
    ({"lr": "-0.1"}, "lr: expected a number above 0, but got '-0.1'"),
    ({"margin": "1"}, "margin: expected 0 or a number from 1e-12 to below 1, but got '1'"),
    ({"confidence": "1"}, "confidence: expected a number from 1e-9 to 1 - 1e-9, but got '1'"),
    ({"seed": "-1"}, "seed: expected a whole number of at least 0, but got '-1'"),
    ({"criterion": "output,tailor"}, f"{CRITERION}, but got 'output,tailor'; did you mean "
                                     "'taylor'?"),
    ({"criterion": "output,output"}, f"{CRITERION}, but got 'output,output'"),
    ({"criterion": 3}, f"{CRITERION}, but got 3"),
    ({"layers": []}, "layers: expected names of layers, e.g. fc1,fc2, but got []"),
    ({"limit": "1"}, f"{LIMIT}, but got '1'"), ({"limit": "8,9"}, f"{LIMIT}, but got '8,9'"),
    ({"limit": "0s"}, f"{LIMIT}, but got '0s'"), ({"limit": "10 minutes"}, f"{LIMIT}, but got "
                                                  "'10 minutes'"),
    ({"limit": [8]}, f"{LIMIT}, but got [8]"),
    ({"slim_epochs": "many"}, "slim_epochs: expected flops, or a whole number of at least 1, but "
                              "got 'many'"),
    ({"what": "heads,streem"}, f"{WHAT}, but got 'heads,streem'; did you mean 'stream'?"),
    ({"what": "multiple_of=0"}, f"{WHAT}, but got 'multiple_of=0'"),
    ({"what": 3}, f"{WHAT}, but got 3"),
    ({"batch_size": "-3"}, "batch_size: expected full, or a whole number of at least 1, but got "
                           "'-3'"),
    ({"device": "gpu"}, "device: expected cpu, auto, mps, cuda or cuda:N, but got 'gpu'"),
    ({"optimizer": "adamw"}, "optimizer: expected 'adam' or 'sgd', but got 'adamw'"),
    ({"slim_hidden": "some"}, "slim_hidden: expected auto, effective, rank, projection, ablation, "
                              "search, or whole numbers of at least 1, e.g. 40,20, but got 'some'"),
    ({"gate": "perhaps"}, "gate: expected true or false, but got 'perhaps'"),
    ({"epohcs": "5"}, "epohcs: no such setting; did you mean 'epochs'?"),
    ({"drop_columns": [1]}, "table: drop_columns: expected names of columns, e.g. id,name, but got "
                            "[1]"),
    ({"table": {"groups": 5}}, "table: groups: expected the name of a column, but got 5"),
    ({"table": "impute: [mean", "groups": "who"}, f"{TABLE}, but got 'impute: [mean'"),
    ({"table": "impute"}, f"{IMPUTE}, but got None"),
    ({"table": "mean"}, "table: expected only groups, drop_columns, impute, categories, but got "
                        "'mean'"),
    ({"table": "impute: [mean"}, f"{TABLE}, but got 'impute: [mean'"),
    ({"table": 5}, f"{TABLE}, but got 5"), ({"table": 5, "groups": "who"}, f"{TABLE}, but got 5"),
    ({"table": {"categoris": 3}}, "table: expected only groups, drop_columns, impute, categories, "
                                  "but got 'categoris'; did you mean 'categories'?"),
    ({"table": {"categories": 1}},
     "table: categories: expected a whole number from 2 to 1000, but got 1"),
    ({"table": {"impute": "medain"}}, f"{IMPUTE}, but got 'medain'; did you mean 'median'?"),
    ({"table": {"impute": {"a": [1]}}}, f"{IMPUTE}, but got [1]"),
    ({"table": "impute: {a: mean, a: 3}"}, f"{TABLE}, but got 'impute: {{a: mean, a: 3}}'"),
    ({"epochs": True},
     "epochs: expected a value, but got true (YAML reads yes, no, on and off so)"),
]


@pytest.mark.parametrize(("values", "message"), BAD, ids=[str(values) for values, _ in BAD])
def test_a_bad_value_is_one_line(values, message):
    with pytest.raises(ConfigError) as error:
        load_settings("usecase", values)
    assert str(error.value) == message


@pytest.mark.parametrize(("content", "message"), [
    ("a: [1", "is not valid YAML: while parsing a flow sequence"),
    ("- 1\n- 2", r"has no 'key: value' lines, but a list$"),
    ("'64'", "has no 'key: value' lines, but a str$"),
    ("epohcs: 3", r"no such setting 'epohcs' in .*bad.yaml; did you mean 'epochs'\?$"),
    (f"{'x' * 900}: 3", "no such setting 'x{59}…' in .*bad.yaml$"),
    ("\"a\\u001b[2Jb\": 3", r"no such setting 'a\\x1b\[2Jb' in"),
    (b"\xff\xfe\x00", r"cannot be read: it is not text in UTF-8 \(byte 0\)$"),
    (b"PK\x03\x04" + bytes(range(256)), "cannot be read: it is not text in UTF-8"),
    (b"epochs: \x00", "is not valid YAML: unacceptable character"),
    ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", r"has an alias \(line 2\); write the value out$"),
    ("a: &a [*a]", r"has an alias \(line 1\)"),
    ("data:\n  <<: {a: 1}", "has a key that is no name .line 2.: '<<'"),
    ("epochs: " + "[" * 100_000, r"is nested more than 20 levels deep \(line 1\)$"),
    ("epochs: " + "{a: " * 3000 + "1" + "}" * 3000, "is nested more than 20 levels deep"),
    ("\n".join(" " * depth + "a:" for depth in range(990)), "is nested more than 20 levels deep"),
    ("lr: 1\nepochs: " + "9" * 5000, r"has a number of 5,000 digits \(line 2\)$"),
    ("seed: 0x" + "f" * 5000, "has a number of 5,002 digits"),
    ("epochs: 1\nlr: 2\nepochs: 3", r"has the key 'epochs' twice \(line 3\)$"),
    ("data: {a: 1, a: 2}", "has the key 'a' twice"),
    ("1: x", r"has a key that is no name \(line 1\): '1'$"),
    ("yes: x", r"has a key that is no name \(line 1\): 'yes'$"),
    ("? [a, b]\n: 1", r"has a key that is no name \(line 1\): 'seq'$"),
    ("null: 1", "has a key that is no name"),
    ("seed: 2020-13-45", "is not valid YAML: month must be in"),
    ("model: !!python/object/apply:os.getcwd []", "is not valid YAML: could not determine a c"),
    ("a: 1\n---\nb: 2", "is not valid YAML: expected a single document"),
    ("# " + "x" * 1_000_000, "is too large: 1,000,002 bytes; at most 1,000,000 are read"),
])
def test_a_bad_file_is_one_line_and_an_unknown_one_names_the_nearest(tmp_path, content, message):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=f"^config: .*{message}") as error:
        load_settings(str(path))
    assert "\n" not in str(error.value) and len(str(error.value)) <= 300
    with pytest.raises(ConfigError, match=r"^config: expected a YAML file or one of breast_cancer, "
                       r"digits, usecase, but got 'digit'; did you mean 'digits'\?$"):
        load_settings("digit")
    with pytest.raises(ConfigError, match=r"^config: no such file: nowhere\.yaml$"):
        load_settings("nowhere.yaml")
    for name, message in (("folder.yaml", "it is not a file"), ("a\0b.yaml", "embedded null byte"),
                          (f"{'a/' * 9999}b.yaml", "File name too long")):
        with pytest.raises(ConfigError, match=f"^config: .* cannot be read: {message}") as error:
            (tmp_path / "folder.yaml").mkdir(exist_ok=True)
            load_settings(str(tmp_path / name) if name == "folder.yaml" else name)
        assert len(str(error.value)) <= 300


@pytest.mark.parametrize("values", [
    {"epochs": "9" * 5000}, {"hidden": "9" * 5000}, {"seeds": "x" * 10**6}, {"score": "y" * 10**6},
    {"criterion": "z" * 10**6}, {"x" * 10**6: 1}, {"epochs": list(range(10**5))},
    {"model": {"a": "b" * 10**5}}, {"device": "\x1b[2J" * 99}, {"hidden": ["a"] * 10**5},
], ids=lambda values: str(values)[:20])
def test_a_long_value_makes_no_long_line(values):
    with pytest.raises(ConfigError) as error:
        load_settings("usecase", values)
    assert str(error.value).isprintable() and len(str(error.value)) <= 300


def test_what_a_configuration_sets_that_a_command_does_not_have(tmp_path):
    """What is at its default is not said: a run's own file has every setting."""
    path = tmp_path / "own.yaml"
    path.write_text("epochs: 3\nmargin: 0.02\nrounds: 2\n")
    assert config.unused_settings(str(path), "train") == ["rounds"]
    assert config.unused_settings(str(path), "slim") == ["epochs"]
    assert config.unused_settings("usecase", "train") == []


def test_every_field_belongs_to_a_command_and_is_described():
    used = {field for fields in config.COMMAND_FIELDS.values() for field in fields}
    assert used == set(Settings.model_fields)
    assert all(info.description for info in Settings.model_fields.values())
