"""A model that was trained elsewhere: its module, a file of weights, data; and what is refused.

Of a file of weights all tensors are taken, by name and shape, or none.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from tests.pipeline import slimming_cases
from tests.pipeline.slimming_cases import (
    HERE,
    QUICK,
    blobs,
    net,
    same,
    tags_of,
    text_of,
    trained_elsewhere,
)
from tests.pruning.cutting_cases import Tokens
from wua_mlflow.cli.main import main
from wua_mlflow.config import load_settings
from wua_mlflow.pipeline import pretrained, workflow
from wua_mlflow.pipeline.pretrained import pretrained_recipe, source_of
from wua_mlflow.pipeline.variant import load_variant
from wua_mlflow.pipeline.weights import load_weights
from wua_mlflow.pipeline.workflow import SlimmingResult
from wua_mlflow.pruning.cut import Specification, cut
from wua_mlflow.report.build import again
from wua_mlflow.rng import Purpose, torch_generator
from wua_mlflow.tracking.names import ArtifactPath
from wua_mlflow.tracking.runs import runs
from wua_mlflow.tracking.store import Store
from wua_mlflow.training.fit import Budget, fit

PRETRAINED = {"model": f"{HERE}:net", "data": QUICK["data"], "null_draws": 0, "slim_hidden": "4",
              "slim_epochs": 2, "batch_size": 32}


def slimmed(store: Store, **changes: object) -> SlimmingResult:
    return workflow.slim_run(store, load_settings(None, {**PRETRAINED, **changes}))


@pytest.fixture(scope="module")
def ran(tmp_path_factory, migrated_database):
    """Somebody's model, cut; training that changes no weight."""
    folder = tmp_path_factory.mktemp("adopted")
    with slimming_cases.store_at(folder, migrated_database) as module_store:
        model = trained_elsewhere()
        save_file(model.state_dict(), "w.safetensors")
        result = slimmed(module_store, state="w.safetensors", optimizer="sgd", lr=1e-30)
        yield module_store, result, model


def test_the_original_is_the_module_with_the_files_weights(ran):
    """Of one network alone, so the recipe's verdict is against it."""
    store, outcome, model = ran
    original = outcome.variants[0]
    points, classes = blobs(42)[2]
    right = (model(points).argmax(1) == classes).double().numpy()
    assert np.array_equal(original.test.scores, right)
    assert right.mean() > 0.8
    assert tags_of(store, original.run_id)["wua.adopted"].endswith("/w.safetensors")
    assert (original.variant, original.name, original.epochs_trained) == (
        "oversized", "oversized 8", 0)
    assert not [name for name in original.metrics if "training" in name], "nobody knows"
    assert len(original.replicates) == 1
    assert outcome.verdict is outcome.comparison.recipe
    assert (outcome.verdict.seeds, outcome.verdict.examples) == (5, 200)
    assert "trained with 5 seeds, against this network" in outcome.verdict.sentence
    tags = tags_of(store, outcome.run_id)
    assert tags["wua.verdict"] == tags["wua.verdict.recipe"] == outcome.verdict.outcome
    assert outcome.verdict.sentence in tags["mlflow.note.content"]
    assert "nothing is known of its budget" in tags["mlflow.note.content"]


def test_it_is_cut_and_nothing_is_trained_from_scratch(ran):
    """Nobody knows how it was trained, so nothing can be trained like it."""
    store, outcome, model = ran
    assert [variant.variant for variant in outcome.variants] == [
        "oversized", "oversized-same-budget", "slim"]
    slim = outcome.variants[-1]
    history = Specification.from_json(text_of(store, slim.run_id, ArtifactPath.STRUCTURE))
    assert same(slim, cut(model, blobs(42)[0][0][:4], history.rounds[0]).model)
    assert (slim.settings.epochs, slim.epochs_trained) == (2, 2)
    assert text_of(store, slim.run_id, "config.yaml").splitlines()[:2] == [
        f"# Cut from the network that run {outcome.variants[0].run_id} left (oversized 8, trained "
        f"elsewhere).", "data: tests.pipeline.slimming_cases:blobs"]
    Path("w.safetensors").rename("gone")
    for variant in outcome.variants:
        loaded = load_variant(store, variant.run_id)
        inputs = variant.recipe.split.test.inputs
        assert torch.equal(loaded.model(inputs), variant.model(inputs)), "without the file"
        assert loaded.adopted is (variant.variant == "oversized")
    Path("gone").rename("w.safetensors")


def test_the_original_is_trained_on_beside_what_was_cut_of_it(ran):
    """As long, by the same trainer, from the same weights: what fine-tuning alone would bring."""
    store, outcome, model = ran
    original, control, slim = outcome.variants
    assert tags_of(store, control.run_id)["mlflow.runName"] == "oversized + 2 epochs"
    split = original.recipe.split
    budget = Budget(2, slim.settings.lr, slim.settings.optimizer, slim.settings.batch_size)
    twin = copy.deepcopy(original.model)
    for _ in fit(twin, (split.train.inputs, split.train.targets), nn.functional.cross_entropy,
                 budget, generator=torch_generator(slim.settings.seed, Purpose.LOADER)):
        pass
    assert same(control, twin)
    assert same(original, model), "it is left as it was"
    note = tags_of(store, outcome.run_id)["mlflow.note.content"]
    assert "Trained on for 2 epochs too, the original scores" in note
    loaded = load_variant(store, control.run_id)
    each = slim.metrics["flops/training"] / slim.metrics["flops/forward"] / slim.trained.tries
    assert loaded.metrics["flops/training"] == pytest.approx(
        each * control.metrics["flops/forward"], rel=0.2)


def test_what_the_report_says_to_run_runs_and_an_adopted_run_is_slimmed_by_its_id(ran):
    """``how`` is prune without being asked for: nothing can be trained from scratch like it."""
    store, outcome, _ = ran
    Path("config.yaml").write_text(text_of(store, outcome.run_id, ArtifactPath.CONFIG))
    sentence = again(outcome.slimmed.original)
    assert sentence.startswith("To run it again: `wua slim --config config.yaml`, with this run's")
    assert main(sentence.split("`")[1].split()[1:]) == 0
    by_id = load_settings(None, {
        "run_id": outcome.variants[0].run_id, "slim_hidden": "2", "slim_epochs": 1})
    variants = workflow.slim_run(store, by_id).variants
    assert [each.variant for each in variants] == ["oversized", "oversized-same-budget", "slim"]
    assert variants[-1].model[0].out_features == 2


def test_a_model_uri_leads_to_the_run_that_logged_it(store, monkeypatch, capsys):
    """A slim one's is no original's."""
    slimming_cases.with_exports(monkeypatch)
    original = slimming_cases.original_in(store, epochs=1)
    client, run = store.client, store.client.get_run(original.run_id)
    (output,) = run.outputs.model_outputs
    client.create_registered_model("blobs")
    client.create_model_version("blobs", f"models:/{output.model_id}", original.run_id,
                                model_id=output.model_id)
    client.set_registered_model_alias("blobs", "oversized", "1")
    uris = ["models:/blobs/1", "models:/blobs@oversized", f"models:/{output.model_id}",
            f"runs:/{original.run_id}/oversized-8"]
    assert [source_of(store, uri) for uri in uris] == [original.run_id] * 4
    words = ["slim", "--slim-hidden", "4", "--slim-epochs", "1", "--how", "prune", "--null-draws",
             "0", "--experiment", "slimming", "--run-id"]
    assert main([*words, uris[0]]) == 0, capsys.readouterr().err
    (slim,) = [row for _, row in runs("slimming").iterrows() if row["wua.variant"] == "slim"]
    assert slim["wua.baseline"] == original.run_id
    capsys.readouterr()
    assert main([*words, f"runs:/{slim['run_id']}/slim-4"]) == 1
    assert capsys.readouterr().err == ("wua: run_id: expected the run of an original (oversized), "
                                       f"but {slim['run_id']} is slim 4\n")


@pytest.mark.filterwarnings("ignore:.*Any type hint")
def test_a_graph_of_somebody_elses_is_refused(store):
    torch.export.save(torch.export.export(net().eval(), (torch.rand(4, 6),)), "graph.pt2")
    with mlflow.start_run() as run:
        logged = mlflow.pyfunc.log_model(name="model", python_model=_answer,
                                         input_example=np.zeros((1, 6)), pip_requirements=[])
    version = mlflow.register_model(logged.model_uri, "theirs").version
    for uri in (logged.model_uri, f"runs:/{run.info.run_id}/model", f"models:/theirs/{version}",
                "graph.pt2", "models:/none/1", "nonsense"):
        with pytest.raises(ValueError) as caught:
            source_of(store, uri)
        assert str(caught.value) == (
            f"run_id: expected a model that a variant's run of wua logged, but {uri} is none; "
            f"an exported graph (pt2) has no layers to cut: name the module and its weights "
            f"(--model package.module:factory --state weights.safetensors --data DATA)")


def _answer(model_input: np.ndarray) -> np.ndarray:
    return model_input


def test_weights_are_the_files_or_the_factorys_own(store):
    """A file of torch's, or a factory that may load them itself: the same at each call."""
    model = trained_elsewhere()
    torch.save(model.state_dict(), "w.pt")
    by_file, *by_factory = (pretrained.import_pretrained(store, pretrained_recipe(
        load_settings(None, {**PRETRAINED, **more})))
        for more in ({"state": "w.pt"}, {"seed": 5}, {"seed": 5}))
    assert same(by_file, model)
    torch.manual_seed(5)
    fresh = net()
    assert all(same(variant, fresh) for variant in by_factory)


def test_a_factory_gets_widths_where_they_were_given(monkeypatch):
    monkeypatch.setattr(slimming_cases, "either", lambda widths=(5,): nn.Sequential(
        nn.Linear(6, widths[0]), nn.ReLU(), nn.Linear(widths[0], 3)), raising=False)
    for more, widths, units in (({}, (), 5), ({"hidden": "8"}, (8,), 8)):
        recipe = pretrained_recipe(load_settings(
            None, {**PRETRAINED, "model": f"{HERE}:either", **more}))
        assert recipe.settings.hidden == widths
        assert recipe.build(recipe.settings.hidden)[0].out_features == units


REFUSED = [
    ({"state": "none.safetensors"},
     "state: expected a .safetensors file, but '{folder}/none.safetensors' does not exist"),
    ({"state": "wide.pt"}, "state: expected '0.weight' of shape (8, 6), as in the model, but "
                           "'{folder}/wide.pt' has (9, 6)"),
    ({"model": f"{HERE}:blobs"}, "model: expected {here}:blobs to return a "
                                 "torch.nn.Module, but it returned list"),
    ({"model": f"{HERE}:uncuttable"}, "how: prune found nothing to cut in {here}:uncuttable: 0: "
                                      "its units are the network's outputs"),
    ({"how": "rebuild"}, "how: rebuild expected a factory of widths, but {here}:net takes none; "
                         "cut the trained network: --how prune"),
    ({"data": "wine"}, "model: does not take the data's inputs of shape (batch, 13): "),
    ({"distill": True, "how": "rebuild"}, "distill: expected how=prune beside it, "),
]


def test_what_cannot_be_an_original_is_refused_in_one_line(store):
    torch.save({**net().state_dict(), "0.weight": torch.ones(9, 6)}, "wide.pt")
    for changes, message in REFUSED:
        with pytest.raises(ValueError) as caught:
            slimmed(store, **changes)
        line = str(caught.value)
        expected = message.format(folder=Path.cwd(), here=HERE)
        assert line == expected or (expected.endswith((": ", ", ")) and line.startswith(expected))
        assert "\n" not in line
    assert set(runs("slimming", "pipeline")["status"]) == {"FAILED"}


def test_an_original_worse_than_no_model_gets_a_warning():
    targets = np.array([0, 0, 0, 1, 1])  # the more frequent class: 0.6
    for task, score, warns in (("binary", 0.7, False), ("binary", 0.55, True),
                               ("regression", 0.1, False), ("regression", -0.2, True)):
        test = SimpleNamespace(task=task, score=score, targets=targets, score_name="")
        warning = pretrained._low_score_warning(test)  # type: ignore[arg-type]
        assert ("are these data what it was trained on" in warning) == warns
        assert "\n" not in warning


def normed(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_every_tensor_is_the_files(tmp_path):
    """Tied weights are in the file once."""
    path = tmp_path / "a.safetensors"
    source, target = normed(1), normed(2)
    source[1].running_mean.fill_(3)
    save_file(source.state_dict(), path)
    assert not same(source, target)
    load_weights(nn.DataParallel(target), str(path))
    assert same(source, target)
    source, target = Tokens(), Tokens()
    save_model(source, str(path))
    load_weights(target, str(path))
    assert same(source, target)
    assert target.head.weight is target.emb.weight


def without(state: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if name not in names}


def safetensors(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[], None]:
    return lambda: save_file(change(normed(1).state_dict()), "a")


def pickled(change: Callable[[nn.Module], object]) -> Callable[[], None]:
    return lambda: torch.save(change(normed(1)), "a.pt")


def bytes_of(name: str, content: bytes) -> Callable[[], None]:
    return lambda: Path(name).write_bytes(content) and None


SAVE = "; save model.state_dict() alone, best as safetensors"
FILES = {
    "lacks two": (safetensors(lambda state: without(state, "0.bias", "2.weight")),
                  "expected all tensors of the model, but 'a' has no '0.bias' (and 1 more)$"),
    "misspelt": (safetensors(lambda state: {**without(state, "2.weight"),
                                            "2.weigth": state["2.weight"].clone()}),
                 "expected all tensors of the model, but 'a' has no '2.weight'; did you mean "
                 "'2.weigth'?$"),
    "more": (safetensors(lambda state: {**state, "more": torch.ones(1)}),
             "expected the model's tensors alone, but 'a' has 'more' too$"),
    "shape": (safetensors(lambda state: {**state, "2.weight": torch.ones(5, 4)}),
              "expected '2.weight' of shape (2, 4), as in the model, but 'a' has (5, 4)$"),
    "text": (bytes_of("a", b"weights, honestly"),
             "expected a .safetensors file, but 'a' cannot be read as one: "),
    "none": (lambda: None, "expected a .safetensors file, but 'a' does not exist$"),
    "folder": (lambda: Path("a").mkdir(), "expected a .safetensors file, but 'a' is a folder$"),
    "module": (pickled(lambda model: model), "expected a state dict, but 'a.pt' holds other "
                                             "objects (torch.nn.modules."),
    "checkpoint": (pickled(lambda model: {**model.state_dict(), "epoch": 3}),
                   f"expected tensors alone, but 'a.pt' has 'epoch', a int{SAVE}$"),
    "list": (pickled(lambda model: [torch.ones(1)]),
             f"expected a state dict, but 'a.pt' holds a list{SAVE}$"),
    "pickled, lacks": (pickled(lambda model: without(model.state_dict(), "0.bias")),
                       "expected all tensors of the model, but 'a.pt' has no '0.bias'$"),
    "torch's, cut off": (bytes_of("a.pt", b"PK\x03\x04"),
                         "expected a state dict, but 'a.pt' cannot be read as one: "),
    "graph": (bytes_of("a.pt2", b"PK\x03\x04"), "expected a .safetensors file, but 'a.pt2' is an "
                                                "exported graph, which has no layers"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_does_not_match_is_refused_and_nothing_is_loaded(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write, message = FILES[case]
    write()
    name = next((path.name for path in tmp_path.iterdir()), "a")
    target, exact = normed(2), message.endswith("$")
    expected = re.escape(message.removesuffix("$")) + ("$" if exact else "[^\n]*$")
    with pytest.raises(ValueError, match=f"^state: {expected}"):
        load_weights(target, name)
    assert same(target, normed(2))
