"""Which layers a null re-initialises, which it permutes, what it leaves, and what it says of it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tests.nulls import INPUTS, Scale, states, stuck, trained
from wua_mlflow.usage.analyze import analyze
from wua_mlflow.usage.results import PERMUTED, REINITIALISED


def test_permuted_layers_have_no_null_by_magnitude():
    """The same weights in another order have the same share: a range of no width says nothing."""
    usage = analyze(stuck(), INPUTS, criterion=["magnitude", "output"], null=3)
    assert usage["magnitude"].layers["0"].null is None
    assert usage["magnitude"].layers["2"].null.kind == REINITIALISED
    assert usage["magnitude"].null.kind == "re-initialised, but 1 of 2 layers permuted"
    assert usage["output"].layers["0"].null.kind == PERMUTED
    alone = analyze(stuck(), INPUTS, criterion="magnitude", layers=["0"], null=3)
    assert alone.null is None and alone.layers["0"].null is None


def test_only_the_layers_that_cannot_be_reinitialised_are_permuted():
    model = stuck()
    usage = analyze(model, INPUTS, null=3)
    assert [layer.null.kind for layer in usage.layers.values()] == [PERMUTED, REINITIALISED]
    assert usage.null.kind == "re-initialised, but 1 of 2 layers permuted"
    assert analyze(model, INPUTS, layers=["0"], null=3).null.kind == PERMUTED
    assert analyze(model, INPUTS, layers=["2"], null=3).null.kind == REINITIALISED
    for state in states(model, INPUTS):
        own = model[0].weight
        assert not torch.equal(state["0.weight"], own)
        assert torch.equal(state["0.weight"].flatten().sort().values, own.flatten().sort().values)
        assert torch.equal(state["0.bias"], model[0].bias)
        assert state["2.weight"].abs().max() <= 1 / math.sqrt(40)  # torch's own bound
        assert not torch.equal(state["2.weight"], model[2].weight)


class Vision(nn.Module):
    """A class token beside an encoder's layer: attention has ``_reset_parameters`` only."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.full((1, 1, 8), 7.0))
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        return self.head(self.encoder(x)[:, 0])


def test_an_encoders_layers_are_reinitialised_and_a_class_token_stays():
    torch.manual_seed(0)
    model, inputs = Vision(), torch.randn(20, 5, 8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
        model.encoder.linear1.weight.copy_(torch.randn(16, 8).exp())
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
    assert usage.layers["0"].null.kind == PERMUTED
    assert usage.layers["2"].null.kind == REINITIALISED
    for state in states(model, INPUTS):
        for key, own in model.state_dict().items():
            if "original" in key:
                assert not torch.equal(state[key], own)
                assert torch.equal(state[key].flatten().sort().values, own.flatten().sort().values)


def test_a_bare_matrix_of_the_model_itself_is_permuted():
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Parameter(torch.randn(30, 8))
            self.head = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head((x @ self.matrix).relu())

    model = Bare()
    usage = analyze(model, INPUTS, layers=["matrix", "head"], null=2)
    assert {name: layer.null.kind for name, layer in usage.layers.items()} == {
        "matrix": PERMUTED, "head": REINITIALISED}


def test_a_parameter_that_is_no_layers_weight_stays_as_it_is():
    model = trained(Scale(40))
    model[1].factor.data = torch.arange(40.0)
    usage = analyze(model, INPUTS, null=2)
    assert usage.layers["0"].null.kind == usage.null.kind == REINITIALISED
    for state in states(model, INPUTS):
        assert state["1.factor"].tolist() == list(range(40))


class Own(nn.Module):
    """A model with a way of its own to initialise: all weights of a matrix are equal."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.matrix = nn.Linear(4, 6), nn.Parameter(torch.randn(6, 5))
        self.last = nn.Linear(5, 2)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.constant_(module.weight, 0.5)
        if isinstance(module, Own):
            nn.init.constant_(module.matrix, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu() @ self.matrix)


def test_a_models_own_initialiser_is_the_null():
    """Of equal weights every one is effective; the bare matrix is re-initialised too."""
    usage = analyze(Own(), torch.randn(20, 4), criterion="magnitude", null=2)
    assert usage.null.kind == REINITIALISED
    assert [layer.null.share for layer in usage.layers.values()] == pytest.approx([1.0, 1.0])


def test_the_nearest_initialiser_has_the_last_word():
    class Around(Own):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.after = Own(), nn.Linear(2, 3)

        def _init_weights(self, module: nn.Module) -> None:
            if isinstance(module, nn.Linear):
                nn.init.uniform_(module.weight)

        def forward(self, x: Tensor) -> Tensor:
            return self.after(self.inner(x))

    usage = analyze(Around(), torch.randn(20, 4), criterion="magnitude", null=2,
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


class Routed(nn.Module):
    """Two experts, of which the router takes one for all rows; a third that only training took."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.head = nn.Linear(5, 2, bias=False), nn.Linear(4, 2)
        self.experts = nn.ModuleList([nn.Linear(5, 4), nn.Linear(5, 4), nn.Linear(5, 4)])
        self.rare = 50.0

    def forward(self, x: Tensor) -> Tensor:
        score = self.router(x).sum(0)
        hidden = self.experts[int(score.argmax())](x)
        if score.abs().max() > self.rare:
            hidden = hidden + self.experts[2](x)
        return self.head(hidden)


def test_experts_that_the_draws_seldom_call_have_a_null_of_these_or_none():
    torch.manual_seed(0)
    model, inputs = Routed(), torch.rand(30, 5)
    with torch.no_grad():
        model.router.weight[0] = 9.0
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
