"""Networks that learned nothing: their shares against theory and simulation, and who is touched."""

from __future__ import annotations

import copy
import math
import threading
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor, nn

from tests.networks import Layers, snapshot
from wua_mlflow.usage import analyze as analyze_module
from wua_mlflow.usage import null as null_module
from wua_mlflow.usage.analyze import analyze
from wua_mlflow.usage.null import with_null
from wua_mlflow.usage.results import PERMUTED, REINITIALISED, ModelUsage
from wua_mlflow.usage.statistics import summarize

INPUTS = torch.rand(50, 30, generator=torch.Generator().manual_seed(1))
UNIFORM_SHARE = math.exp(0.5) / 2
"""exp(entropy) ÷ n of |w| drawn uniformly from an interval around 0, as n grows: by integration."""


def trained(*extra: nn.Module) -> nn.Sequential:
    """A network whose first layer holds a pattern that no initialisation would draw."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 40), *extra, nn.ReLU(), nn.Linear(40, 2))
    model[0].weight.data = torch.randn(40, 30).exp()
    return model


def stuck() -> nn.Sequential:
    """A network whose first layer cannot be re-initialised, and the two after it can."""
    torch.manual_seed(0)
    plain = Layers(lambda layer, x: nn.functional.linear(x, layer.weight, layer.bias),
                   weight=nn.Parameter(torch.randn(40, 30).exp()),
                   bias=nn.Parameter(torch.randn(40)))
    return nn.Sequential(plain, nn.ReLU(), nn.Linear(40, 20), nn.ReLU(), nn.Linear(20, 2))


def states(model: nn.Module, inputs: Tensor, draws: int = 2) -> list[dict[str, Tensor]]:
    """What each draw's network holds; the model itself must be left exactly as found."""
    before, drawn, usage = copy.deepcopy(model.state_dict()), [], analyze(model, inputs)

    def measure(blank: nn.Module) -> dict[str, ModelUsage]:
        assert blank is not model
        drawn.append(copy.deepcopy(blank.state_dict()))
        return {"output": usage}

    with_null({"output": usage}, model, measure, draws=draws, seed=0)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    return drawn


@pytest.mark.parametrize(("seconds", "draws"), [(30.0, 7), (1.0, 5), (80.0, 20), (math.inf, 20)])
def test_no_more_draws_than_there_is_time_for(seconds, draws, monkeypatch):
    """By the first one, which takes four seconds; they are the first ones of all."""
    monkeypatch.setattr(null_module, "clock", iter((10.0, 14.0)).__next__)
    fewer = analyze(trained(), INPUTS, null=20, null_seconds=seconds).layers["0"].null
    assert fewer.draws == draws
    monkeypatch.undo()
    assert fewer == analyze(trained(), INPUTS, null=draws).layers["0"].null


def test_reinitialised_layers_have_the_share_of_uniform_weights():
    usage = analyze(trained(), INPUTS, criterion="magnitude", null=20)
    null = usage.layers["0"].null
    assert (null.kind, null.draws) == (REINITIALISED, 20)
    assert null.share == pytest.approx(UNIFORM_SHARE, abs=0.01)
    assert null.low < UNIFORM_SHARE < null.high and null.high - null.low < 0.05
    entropy_of_null = math.log(UNIFORM_SHARE * 1200)
    assert null.shift == pytest.approx(entropy_of_null - usage.layers["0"].entropy, abs=0.02)
    assert usage.null.share == pytest.approx(null.share) and usage.null.kind == REINITIALISED


def test_permuted_shares_are_those_of_a_simulation():
    model = stuck()
    weight, bias = model[0].weight.detach().numpy(), model[0].bias.detach().numpy()
    mean_input, generator = INPUTS.numpy().mean(0), np.random.default_rng(2)
    simulated = []
    for _ in range(200):
        drawn = generator.permutation(weight.ravel()).reshape(weight.shape)
        importance = np.abs(drawn) * np.abs(drawn @ mean_input + bias)[:, None]
        simulated.append(math.exp(scipy.stats.entropy(importance.ravel())) / importance.size)
    null = analyze(model, INPUTS, null=50).layers["0"].null
    error = np.std(simulated) * math.sqrt(1 / 200 + 1 / 50)
    assert null.share == pytest.approx(np.mean(simulated), abs=4 * error)
    assert null.low == pytest.approx(np.quantile(simulated, 0.025), abs=2 * np.std(simulated))
    assert null.low < null.share < null.high


def test_the_range_and_the_shift_are_those_of_the_draws():
    model, usages = trained(), []
    usage = analyze(model, INPUTS)

    def measure(blank: nn.Module) -> dict[str, ModelUsage]:
        usages.append(analyze(blank, INPUTS).layers["0"])
        return {"output": replace(usage, layers={"0": usages[-1]})}

    null = with_null({"output": usage}, model, measure, draws=8, seed=3)["output"].layers["0"].null
    shares = [layer.effective_share for layer in usages]
    assert len(shares) == len(set(shares)) == 8 and null.share == pytest.approx(np.mean(shares))
    assert (null.low, null.high) == pytest.approx(tuple(np.quantile(shares, [0.025, 0.975])))
    assert null.shift == pytest.approx(
        np.mean([layer.entropy for layer in usages]) - usage.layers["0"].entropy)
    with_null({"output": usage}, model, measure, draws=2, seed=3)
    assert [layer.effective_share for layer in usages[8:]] == shares[:2], "more begin with fewer"


def test_draws_work_on_one_copy_that_has_forgotten_everything():
    model = nn.Sequential(nn.Linear(30, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    for parameter in model.parameters():
        parameter.data.fill_(7.0)
    model[1].running_mean.fill_(5.0)
    first, second = states(model, INPUTS)
    assert not torch.equal(first["0.weight"], second["0.weight"])
    for state in (first, second):
        assert not any((state[key] == 7.0).any() for key in ("0.weight", "0.bias", "3.weight"))
        assert state["0.weight"].abs().max() <= 1 / math.sqrt(30)  # torch's own bound
        assert state["1.running_mean"].tolist() == [0.0] * 4
        assert state["1.weight"].tolist() == [1.0] * 4


def test_a_parents_own_initialisation_has_the_last_word():
    class Parent(Layers):
        def reset_parameters(self) -> None:
            nn.init.constant_(self.inner.weight, 0.25)

    model = Parent(lambda model, x: model.outer(model.inner(x)), inner=nn.Linear(30, 4),
                   outer=nn.Linear(4, 2))
    usage = analyze(model, INPUTS, criterion="magnitude", null=3)
    assert usage.layers["inner"].null.low == pytest.approx(1.0)


@pytest.mark.parametrize("make", [trained, stuck], ids=[REINITIALISED, PERMUTED])
def test_the_global_streams_and_the_model_are_left_alone(make):
    model = make()
    model(INPUTS).sum().backward()
    before = snapshot(model)
    analyze(model, INPUTS, null=2)
    assert snapshot(model) == before


def test_at_least_one_draw():
    with pytest.raises(ValueError, match="draws: expected .* at least 1, but got 0"):
        with_null({}, trained(), lambda blank: {}, draws=0, seed=0)


@pytest.mark.parametrize("criterion", ["output", "wanda", "taylor"])
def test_a_large_layer_is_sampled_by_whole_units(criterion, monkeypatch):
    """120 of 480 units stand for all: about the same share, and the same scale of counts."""
    model = nn.Sequential(nn.Linear(30, 480), nn.ReLU(), nn.Linear(480, 2))
    data = [(INPUTS, torch.arange(50) % 2)]
    options = {"criterion": criterion, "null": 4, "seed": 8, "loss": nn.functional.cross_entropy}
    whole = analyze(model, data, **options).layers["0"].null
    monkeypatch.setattr(analyze_module, "MOST_IN_A_DRAW", 120 * 30)
    shapes = []
    monkeypatch.setattr(analyze_module, "summarize", lambda part, shape, **how: shapes.append(
        shape) or summarize(part, shape, **how))
    sampled = analyze(model, data, **options).layers["0"].null
    assert shapes.count((120, 30)) == 4
    assert sampled.share == pytest.approx(whole.share, rel=0.1)
    assert sampled.shift == pytest.approx(whole.shift, abs=0.1)
    assert analyze(model, data, **options).layers["0"].null == sampled


def test_a_model_that_cannot_be_copied():
    model = trained(Layers(lambda layer, x: x, lock=threading.Lock()))
    data = [(INPUTS, torch.arange(50) % 2)]
    options = {"criterion": "taylor", "loss": nn.functional.cross_entropy}
    assert analyze(model, data, **options).layers
    with pytest.raises(ValueError, match="^model: cannot be copied, which the null needs: TypeError"
                                         ": cannot pickle '_thread.lock' object; use null=0$"):
        analyze(model, data, null=2, **options)


def assert_permuted(values: Tensor, before: Tensor) -> None:
    assert not torch.equal(values, before)
    assert torch.equal(values.flatten().sort().values, before.flatten().sort().values)


def test_only_the_layers_that_cannot_be_reinitialised_are_permuted():
    model = stuck()
    usages = analyze(model, INPUTS, criterion=["output", "magnitude"], null=3)
    nulls = {name: [layer.null and layer.null.kind for layer in usage.layers.values()]
             for name, usage in usages.items()}
    # by magnitude the same weights in another order have the same share: no range
    assert nulls == {"output": [PERMUTED, REINITIALISED], "magnitude": [None, REINITIALISED]}
    assert {usage.null.kind for usage in usages.values()} == {
        "re-initialised, but 1 of 2 layers permuted"}
    assert analyze(model, INPUTS, layers=["0"], null=3).null.kind == PERMUTED
    assert analyze(model, INPUTS, layers=["2"], null=3).null.kind == REINITIALISED
    alone = analyze(model, INPUTS, criterion="magnitude", layers=["0"], null=3)
    assert alone.null is None and alone.layers["0"].null is None
    for state in states(model, INPUTS):
        assert_permuted(state["0.weight"], model[0].weight)
        assert torch.equal(state["0.bias"], model[0].bias)
        assert state["2.weight"].abs().max() <= 1 / math.sqrt(40)  # torch's own bound
        assert not torch.equal(state["2.weight"], model[2].weight)


def vision(model: Layers, x: Tensor) -> Tensor:
    """A class token beside an encoder's layer: attention has ``_reset_parameters`` only."""
    x = torch.cat([model.token.expand(len(x), -1, -1), x], 1)
    return model.head(model.encoder(x)[:, 0])


def test_an_encoders_layers_are_reinitialised_and_a_class_token_stays():
    model = Layers(vision, token=nn.Parameter(torch.full((1, 1, 8), 7.0)), head=nn.Linear(8, 2),
                   encoder=nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    inputs = torch.randn(20, 5, 8)
    for parameter in model.parameters():
        parameter.data.fill_(7.0)
    model.encoder.linear1.weight.data.copy_(torch.randn(16, 8).exp())
    usage = analyze(model, inputs, null=2)
    kinds = {layer.null.kind for layer in usage.layers.values()}
    assert kinds == {usage.null.kind} == {REINITIALISED}
    bounds = {"encoder.linear1.weight": 1 / math.sqrt(8),  # torch's own, and Glorot's
              "encoder.linear2.weight": 1 / math.sqrt(16), "head.weight": 1 / math.sqrt(8),
              "encoder.self_attn.in_proj_weight": math.sqrt(6 / (8 + 24))}
    for state in states(model, inputs):
        for name, bound in bounds.items():
            assert 0.8 * bound < state[name].abs().max() <= bound
            assert state[name].unique().numel() > 0.9 * state[name].numel()
        assert (state["token"] == 7.0).all()


def test_a_weight_norm_keeps_a_layer_from_being_reinitialised():
    model = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(30, 40)),
                          nn.ReLU(), nn.Linear(40, 20), nn.ReLU(), nn.Linear(20, 2))
    usage = analyze(model, INPUTS, null=2)
    assert usage.layers["0"].null.kind == PERMUTED and usage.layers["2"].null.kind == REINITIALISED
    for state in states(model, INPUTS):
        for key, value in model.state_dict().items():
            if "original" in key:
                assert_permuted(state[key], value)


def test_a_bare_matrix_of_the_model_itself_is_permuted():
    model = Layers(lambda model, x: model.head((x @ model.matrix).relu()),
                   matrix=nn.Parameter(torch.randn(30, 8)), head=nn.Linear(8, 2))
    usage = analyze(model, INPUTS, layers=["matrix", "head"], null=2)
    assert {name: layer.null.kind for name, layer in usage.layers.items()} == {
        "matrix": PERMUTED, "head": REINITIALISED}


def test_a_parameter_that_is_no_layers_weight_stays_as_it_is():
    model = trained(Layers(lambda layer, x: x * layer.factor,
                           factor=nn.Parameter(torch.arange(40.0))))
    usage = analyze(model, INPUTS, null=2)
    assert usage.layers["0"].null.kind == usage.null.kind == REINITIALISED
    for state in states(model, INPUTS):
        assert state["1.factor"].tolist() == list(range(40))


class Own(Layers):
    """A model with a way of its own to initialise: all weights of a matrix are equal."""

    def __init__(self) -> None:
        super().__init__(lambda model, x: model.last(model.first(x).relu() @ model.matrix),
                         first=nn.Linear(4, 6), matrix=nn.Parameter(torch.randn(6, 5)),
                         last=nn.Linear(5, 2))

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.constant_(module.weight, 0.5)
        if isinstance(module, Own):
            nn.init.constant_(module.matrix, 2.0)


def test_a_models_own_initialiser_is_the_null():
    """Of equal weights every one is effective; the bare matrix is re-initialised too."""
    usage = analyze(Own(), torch.randn(20, 4), criterion="magnitude", null=2)
    assert usage.null.kind == REINITIALISED
    assert [layer.null.share for layer in usage.layers.values()] == pytest.approx([1.0, 1.0])


def test_the_nearest_initialiser_has_the_last_word():
    class Around(Layers):
        def _init_weights(self, module: nn.Module) -> None:
            if isinstance(module, nn.Linear):
                nn.init.uniform_(module.weight)

    around = Around(lambda model, x: model.after(model.inner(x)), inner=Own(),
                    after=nn.Linear(2, 3))
    usage = analyze(around, torch.randn(20, 4), criterion="magnitude", null=2,
                    layers=["inner.first", "after"])
    assert usage.layers["inner.first"].null.share == pytest.approx(1.0)
    assert usage.layers["after"].null.share < 0.99


def test_an_initialiser_that_is_none_of_ours_is_passed_over():
    class Other(Own):
        def _init_weights(self) -> None:
            raise AssertionError("not called: it takes no module")

    class Failing(Own):
        def _init_weights(self, module: nn.Module) -> None:
            raise RuntimeError("cannot be called again")

    for model in (Other(), Failing()):
        usage = analyze(model, torch.randn(20, 4), null=2)
        assert usage.null.kind == f"{REINITIALISED}, but 1 of 2 layers {PERMUTED}"


def route(model: Layers, x: Tensor) -> Tensor:
    """Two experts, of which the router takes one for all rows; a third that only training took."""
    score = model.router(x).sum(0)
    hidden = model.experts[int(score.argmax())](x)
    if score.abs().max() > model.rare:
        hidden = hidden + model.experts[2](x)
    return model.head(hidden)


def test_experts_that_the_draws_seldom_call_have_a_null_of_these_or_none():
    model = Layers(route, router=nn.Linear(5, 2, bias=False), head=nn.Linear(4, 2),
                   experts=nn.ModuleList([nn.Linear(5, 4) for _ in range(3)]))
    model.router.weight.data[0] = 9.0
    model.rare, inputs = 50.0, torch.rand(30, 5)
    usage = analyze(model, inputs, null=20, seed=0)
    assert set(usage.layers) >= {"router", "experts.0", "experts.2"}
    draws = {name: layer.null and layer.null.draws for name, layer in usage.layers.items()}
    called = sum(int((inputs @ state["router.weight"].T).sum(0).argmax() == 0)
                 for state in states(model, inputs, draws=20))
    assert draws["router"] == 20 and draws["experts.2"] is None
    assert draws["experts.0"] == called and 0 < called < 20
    assert usage.null is None, "no draw calls every layer that the model itself calls"
    model.rare = math.inf
    alone = analyze(model, inputs, null=20, seed=0)
    assert alone.null.draws == alone.layers["experts.0"].null.draws == draws["experts.0"]
