"""A model that was trained elsewhere: its module, a file of weights, data; and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.pipeline.slimming_cases import (  # noqa: F401 - store is a fixture
    HERE,
    QUICK,
    blobs,
    net,
    original_in,
    store,
    store_at,
    tags_of,
    text_of,
    with_exports,
)
from wua_mlflow.cli.main import main
from wua_mlflow.config import load_settings
from wua_mlflow.pipeline import workflow
from wua_mlflow.pipeline.pretrained import (
    _low_score_warning,
    import_pretrained,
    pretrained_recipe,
    source_of,
)
from wua_mlflow.pipeline.variant import load_variant
from wua_mlflow.pipeline.workflow import SlimmingResult
from wua_mlflow.pruning.cut import Specification, cut
from wua_mlflow.report.build import again
from wua_mlflow.rng import Purpose, torch_generator
from wua_mlflow.tracking.names import ArtifactPath
from wua_mlflow.tracking.runs import runs
from wua_mlflow.tracking.store import Store
from wua_mlflow.training.fit import Budget, fit

OWN = {"model": f"{HERE}:net", "data": QUICK["data"], "null_draws": 0, "slim_hidden": "4",
       "slim_epochs": 2, "batch_size": 32}


def elsewhere() -> nn.Sequential:
    """The factory's network, trained by somebody."""
    torch.manual_seed(3)
    model, (x, y) = net(), blobs(42)[0]
    steps = torch.optim.Adam(model.parameters(), 0.05)
    for _ in range(40):
        steps.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        steps.step()
    return model


def slimmed(store: Store, **given: object) -> SlimmingResult:  # noqa: F811
    values = {**OWN, **given}
    return workflow.slim_run(store, load_settings(None, values))


@pytest.fixture(scope="module")
def ran(
    tmp_path_factory: pytest.TempPathFactory, migrated_database: Path
) -> Iterator[tuple[Store, SlimmingResult, nn.Module]]:
    """Somebody's model, cut, with two rounds; training that changes no weight."""
    with store_at(tmp_path_factory.mktemp("adopted"), migrated_database) as found:
        model = elsewhere()
        save_file(model.state_dict(), "w.safetensors")
        yield found, slimmed(found, state="w.safetensors", optimizer="sgd", lr=1e-30), model


def test_the_original_is_the_module_with_the_files_weights(
    ran: tuple[Store, SlimmingResult, nn.Module]
) -> None:
    store, outcome, model = ran  # noqa: F811
    original = outcome.variants[0]
    points, classes = blobs(42)[2]
    right = (model(points).argmax(1) == classes).double().numpy()
    assert np.array_equal(original.test.scores, right)
    assert right.mean() > 0.8
    tags = tags_of(store, original.run_id)
    assert tags["wua.adopted"].endswith("/w.safetensors")
    assert (original.variant, original.name, original.epochs_trained) == (
        "oversized", "oversized 8", 0)
    assert not [name for name in original.metrics if "training" in name], "nobody knows"


def test_it_is_cut_and_nothing_is_trained_from_scratch(
    ran: tuple[Store, SlimmingResult, nn.Module]
) -> None:
    """Nobody knows how it was trained, so nothing can be trained like it."""
    store, outcome, model = ran  # noqa: F811
    assert [one.variant for one in outcome.variants] == ["oversized", "oversized-same-budget",
                                                         "slim"]
    slim = outcome.variants[-1]
    history = Specification.from_json(text_of(store, slim.run_id, ArtifactPath.STRUCTURE))
    expected = cut(model, blobs(42)[0][0][:4], history.rounds[0]).model
    for found, one in zip(slim.model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(found, one)
    assert (slim.settings.epochs, slim.epochs_trained) == (2, 2)
    assert text_of(store, slim.run_id, "config.yaml").splitlines()[:2] == [
        f"# Cut from the network that run {outcome.variants[0].run_id} left (oversized 8, trained "
        f"elsewhere).", "data: tests.pipeline.slimming_cases:blobs"]


def test_the_original_is_trained_on_beside_what_was_cut_of_it(
    ran: tuple[Store, SlimmingResult, nn.Module]
) -> None:
    """As long, by the same trainer, from the same weights: what fine-tuning alone would bring."""
    store, outcome, model = ran  # noqa: F811
    original, control, slim = outcome.variants
    assert control.variant == "oversized-same-budget"
    assert tags_of(store, control.run_id)["mlflow.runName"] == "oversized 8, 2 more epochs"
    split = original.recipe.split
    budget = Budget(2, slim.settings.lr, slim.settings.optimizer, slim.settings.batch_size)
    twin = copy.deepcopy(original.model)
    for _ in fit(twin, (split.train.inputs, split.train.targets), nn.functional.cross_entropy,
                 budget, generator=torch_generator(slim.settings.seed, Purpose.LOADER)):
        pass
    for one, own in zip(control.model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, own)
    for one, own in zip(original.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, own)  # it is left as it was
    note = tags_of(store, outcome.run_id)["mlflow.note.content"]
    assert "Trained on for 2 epochs too, the original scores" in note
    again = load_variant(store, control.run_id)
    inputs = split.test.inputs
    assert torch.equal(again.model(inputs), control.model(inputs))
    assert not again.adopted
    each = slim.metrics["flops/training"] / slim.metrics["flops/forward"] / slim.trained.tries
    assert again.metrics["flops/training"] == pytest.approx(
        each * control.metrics["flops/forward"], rel=0.2)


def test_the_verdict_is_the_artifacts_alone(ran: tuple[Store, SlimmingResult, nn.Module]) -> None:
    store, outcome, _ = ran  # noqa: F811
    assert outcome.comparison.recipe is None
    assert outcome.verdict.kind == "artifact"
    assert (outcome.verdict.seeds, outcome.verdict.examples) == (1, 200)
    tags = tags_of(store, outcome.run_id)
    assert tags["wua.verdict"] == tags["wua.verdict.artifact"] == outcome.verdict.outcome
    assert "wua.verdict.recipe" not in tags
    assert "nothing is known of its budget" in tags["mlflow.note.content"]


def test_both_are_loaded_from_their_runs_without_the_file(
    ran: tuple[Store, SlimmingResult, nn.Module]
) -> None:
    store, outcome, _ = ran  # noqa: F811
    Path("w.safetensors").rename("gone")
    try:
        for one in outcome.variants:
            again = load_variant(store, one.run_id)
            inputs = one.recipe.split.test.inputs
            assert torch.equal(again.model(inputs), one.model(inputs))
            assert again.adopted is (one.variant == "oversized")
    finally:
        Path("gone").rename("w.safetensors")


def test_what_the_report_says_to_run_runs(ran: tuple[Store, SlimmingResult, nn.Module]) -> None:
    store, outcome, _ = ran  # noqa: F811
    Path("config.yaml").write_text(text_of(store, outcome.run_id or outcome.variants[-1].run_id,
                                           ArtifactPath.CONFIG))
    said = again(outcome.slimmed.original)
    assert said.startswith("To run it again: `wua slim --config config.yaml`, with this run's")
    assert main(said.split("`")[1].split()[1:]) == 0


def test_an_adopted_run_is_slimmed_again_by_its_id(
    ran: tuple[Store, SlimmingResult, nn.Module],
) -> None:
    """``how`` is prune without being asked for: nothing can be trained from scratch like it."""
    store, outcome, model = ran  # noqa: F811
    given = {"run_id": outcome.variants[0].run_id, "slim_hidden": "2", "slim_epochs": 1}
    again = workflow.slim_run(store, load_settings(None, given))
    assert [one.variant for one in again.variants] == ["oversized", "oversized-same-budget", "slim"]
    assert again.variants[-1].model[0].out_features == 2  # type: ignore[index]


def test_a_model_uri_leads_to_the_run_that_logged_it(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]  # noqa: F811
) -> None:
    """A slim one's is no original's."""
    with_exports(monkeypatch)
    original = original_in(store, epochs=1)
    client, run = store.client, store.client.get_run(original.run_id)
    (output,) = run.outputs.model_outputs
    client.create_registered_model("blobs")
    client.create_model_version("blobs", f"models:/{output.model_id}", original.run_id,
                                model_id=output.model_id)
    client.set_registered_model_alias("blobs", "oversized", "1")
    uris = ["models:/blobs/1", "models:/blobs@oversized", f"models:/{output.model_id}",
            f"runs:/{original.run_id}/model"]
    assert [source_of(store, uri) for uri in uris] == [original.run_id] * 4
    words = ["slim", "--slim-hidden", "4", "--slim-epochs", "1", "--how", "prune", "--null-draws",
             "0", "--experiment", "slimming", "--model-uri"]
    assert main([*words, uris[0]]) == 0, capsys.readouterr().err
    (slim,) = [row for _, row in runs("slimming").iterrows() if row["wua.variant"] == "slim"]
    assert slim["wua.baseline"] == original.run_id
    capsys.readouterr()
    assert main([*words, f"runs:/{slim['run_id']}/model"]) == 1
    assert capsys.readouterr().err == (
        f"wua: run_id: expected the run of an original (oversized), but {slim['run_id']} is "
        f"slim 4\n")


@pytest.mark.filterwarnings("ignore:.*Any type hint")
def test_a_graph_of_somebody_elses_is_refused(store: Store) -> None:  # noqa: F811
    torch.export.save(torch.export.export(net().eval(), (torch.rand(4, 6),)), "graph.pt2")
    with mlflow.start_run() as run:
        logged = mlflow.pyfunc.log_model(name="model", python_model=_answer,
                                         input_example=np.zeros((1, 6)), pip_requirements=[])
    theirs = mlflow.register_model(logged.model_uri, "theirs").version
    for uri in (logged.model_uri, f"runs:/{run.info.run_id}/model", f"models:/theirs/{theirs}",
                "graph.pt2", "models:/none/1", "nonsense"):
        with pytest.raises(ValueError) as caught:
            source_of(store, uri)
        assert str(caught.value) == (
            f"model_uri: expected a model that a variant's run of wua logged, but {uri} is none; "
            f"an exported graph (pt2) has no layers to cut: name the module and its weights "
            f"(--model package.module:factory --state weights.safetensors --data DATA)")


def _answer(model_input: np.ndarray) -> np.ndarray:
    return model_input


def test_a_state_dict_of_torch_does_too(store: Store) -> None:  # noqa: F811
    model = elsewhere()
    torch.save(model.state_dict(), "w.pt")
    settings = load_settings(None, {**OWN, "state": "w.pt"})
    found = import_pretrained(store, pretrained_recipe(settings))
    for one, own in zip(found.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, own)


def test_without_a_file_the_factorys_own_weights_are_taken(store: Store) -> None:  # noqa: F811
    """A factory may load them itself."""
    found = [import_pretrained(store, pretrained_recipe(
        load_settings(None, {**OWN, "seed": 5}))) for _ in range(2)]
    torch.manual_seed(5)
    for one, other, own in zip(*(each.model.parameters() for each in found), net().parameters(),
                               strict=True):
        assert torch.equal(one, other) and torch.equal(one, own)


@pytest.mark.parametrize(("given", "widths"), [
    ({}, ()),
    ({"hidden": "8"}, (8,)),
])
def test_a_factory_gets_widths_where_they_were_given(
    given: dict[str, str], widths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.pipeline import slimming_cases

    monkeypatch.setattr(slimming_cases, "either", lambda widths=(5,): nn.Sequential(
        nn.Linear(6, widths[0]), nn.ReLU(), nn.Linear(widths[0], 3)), raising=False)
    settings = load_settings(None, {**OWN, "model": f"{HERE}:either", "seeds": 7, **given})
    recipe = pretrained_recipe(settings)
    assert (recipe.settings.hidden, recipe.settings.seeds) == (widths, 1)
    assert recipe.build(recipe.settings.hidden)[0].out_features == (8 if widths else 5)


BAD = [
    ({"state": "none.safetensors"},
     "state: expected a .safetensors file, but '{folder}/none.safetensors' does not exist"),
    ({"state": "wide.pt"}, "state: expected '0.weight' of shape (8, 6), as in the model, but "
                           "'{folder}/wide.pt' has (9, 6)"),
    ({"model": f"{HERE}:nett"}, "model: expected a name in the module {here} ({file}), but got "
                                "'nett'; did you mean 'net'?"),
    ({"model": "nowhere:net"}, "model: expected a module in the current folder or among the "
                               "installed packages, but found none named 'nowhere'"),
    ({"model": f"{HERE}:blobs"}, "model: expected {here}:blobs to return a "
                                 "torch.nn.Module, but it returned list"),
    ({"model": f"{HERE}:uncuttable"}, "how: prune found nothing to cut in {here}:uncuttable: 0: "
                                      "its units are the network's outputs"),
    ({"how": "rebuild"}, "how: rebuild expected a factory of widths, but {here}:net takes none; "
                         "cut the trained network: --how prune"),
    ({"data": "wine"}, "model: does not take the data's inputs of shape (batch, 13): "),
    ({"slim_hidden": "9"}, "slim_hidden: expected widths of at most the original's (8), but got 9"),
    ({"distill": True, "how": "rebuild"}, "distill: expected how=prune beside it, "),
]


@pytest.mark.parametrize(("given", "message"), BAD,
                         ids=[str(next(iter(given.values()))) for given, _ in BAD])
def test_what_cannot_be_an_original_is_refused_in_one_line(
    store: Store, given: dict[str, object], message: str  # noqa: F811
) -> None:
    torch.save({**net().state_dict(), "0.weight": torch.ones(9, 6)}, "wide.pt")
    with pytest.raises(ValueError) as caught:
        slimmed(store, **given)
    line = str(caught.value)
    file = Path(__file__).with_name("slimming_cases.py")
    expected = message.format(folder=Path.cwd(), here=HERE, file=file)
    assert line == expected or (expected.endswith((": ", ", ")) and line.startswith(expected))
    assert "\n" not in line
    assert set(runs("slimming", "pipeline")["status"]) == {"FAILED"}


@pytest.mark.parametrize(("task", "score", "said"), [
    ("binary", 0.7, False), ("binary", 0.55, True), ("regression", 0.1, False),
    ("regression", -0.2, True)])
def test_an_original_worse_than_no_model_gets_a_warning(
    task: str, score: float, said: bool
) -> None:
    targets = np.array([0, 0, 0, 1, 1])  # the more frequent class: 0.6
    variant = SimpleNamespace(test=SimpleNamespace(task=task, score=score, targets=targets))
    found = _low_score_warning(variant)  # type: ignore[arg-type]
    assert ("are these data what it was trained on" in found) == said
    assert "\n" not in found
