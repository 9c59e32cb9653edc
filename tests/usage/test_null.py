"""Networks that learned nothing: their shares against theory and simulation, and who is touched."""

from __future__ import annotations

import copy
import math
import random
import threading

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor, nn

from tests.nulls import INPUTS, stuck, trained
from wua_mlflow.usage import analyze as analyze_module
from wua_mlflow.usage.analyze import analyze
from wua_mlflow.usage.null import with_null
from wua_mlflow.usage.results import PERMUTED, REINITIALISED, ModelUsage
from wua_mlflow.usage.statistics import summarize

UNIFORM_SHARE = math.exp(0.5) / 2
"""exp(entropy) ÷ n of |w| drawn uniformly from an interval around 0, as n grows: by integration."""


def test_reinitialised_layers_have_the_share_of_uniform_weights():
    usage = analyze(trained(), INPUTS, criterion="magnitude", null=20)
    null = usage.layers["0"].null
    assert (null.kind, null.draws) == (REINITIALISED, 20)
    assert null.share == pytest.approx(UNIFORM_SHARE, abs=0.01)
    assert null.low < UNIFORM_SHARE < null.high
    assert null.high - null.low < 0.05
    entropy_of_null = math.log(UNIFORM_SHARE * 1200)
    assert null.shift == pytest.approx(entropy_of_null - usage.layers["0"].entropy, abs=0.02)
    assert usage.null.share == pytest.approx(null.share)
    assert usage.null.kind == REINITIALISED


def test_permuted_shares_are_those_of_a_simulation():
    model = stuck()
    weight, bias = model[0].weight.detach().numpy(), model[0].bias.detach().numpy()
    mean_input, generator = INPUTS.numpy().mean(0), np.random.default_rng(2)
    simulated = []
    for _ in range(200):
        drawn = generator.permutation(weight.ravel()).reshape(weight.shape)
        importance = np.abs(drawn) * np.abs(drawn @ mean_input + bias)[:, None]
        simulated.append(math.exp(scipy.stats.entropy(importance.ravel())) / importance.size)
    null = analyze(model, INPUTS, null=100).layers["0"].null
    error = np.std(simulated) * math.sqrt(1 / 200 + 1 / 100)
    assert null.share == pytest.approx(np.mean(simulated), abs=4 * error)
    assert null.low == pytest.approx(np.quantile(simulated, 0.025), abs=2 * np.std(simulated))
    assert null.low < null.share < null.high


def test_the_range_and_the_shift_are_those_of_the_draws():
    model, shares, entropies = trained(), [], []

    def measure(blank: nn.Module) -> dict[str, ModelUsage]:
        found = analyze(blank, INPUTS)
        shares.append(found.layers["0"].effective_share)
        entropies.append(found.layers["0"].entropy)
        return {"output": found}

    usage = analyze(model, INPUTS)
    null = with_null({"output": usage}, model, measure, draws=8, seed=3)["output"].layers["0"].null
    assert len(shares) == len(set(shares)) == 8
    assert null.share == pytest.approx(np.mean(shares))
    assert (null.low, null.high) == pytest.approx(tuple(np.quantile(shares, [0.025, 0.975])))
    assert null.shift == pytest.approx(np.mean(entropies) - usage.layers["0"].entropy)


def test_draws_work_on_one_copy_that_has_forgotten_everything():
    model = nn.Sequential(nn.Linear(30, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    model[1].running_mean.fill_(5.0)
    before = copy.deepcopy(model.state_dict())
    seen = []

    def measure(blank: nn.Module) -> dict[str, ModelUsage]:
        assert blank is not model
        seen.append(copy.deepcopy(blank.state_dict()))
        return {"output": usage}

    usage = analyze(model, INPUTS)
    with_null({"output": usage}, model, measure, draws=2, seed=0)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not torch.equal(seen[0]["0.weight"], seen[1]["0.weight"])
    for state in seen:
        assert not any((state[key] == 7.0).any() for key in ("0.weight", "0.bias", "3.weight"))
        assert state["0.weight"].abs().max() <= 1 / math.sqrt(30)  # torch's own bound
        assert state["1.running_mean"].tolist() == [0.0] * 4
        assert state["1.weight"].tolist() == [1.0] * 4


def test_a_parents_own_initialisation_has_the_last_word():
    class Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(30, 4)
            self.outer = nn.Linear(4, 2)

        def reset_parameters(self) -> None:
            nn.init.constant_(self.inner.weight, 0.25)

        def forward(self, x: Tensor) -> Tensor:
            return self.outer(self.inner(x))

    usage = analyze(Tiny(), INPUTS, criterion="magnitude", null=3)
    assert usage.layers["inner"].null.low == pytest.approx(1.0)


def test_draws_are_those_of_the_seed():
    first, again, other = (analyze(trained(), INPUTS, null=3, seed=seed).layers["0"].null
                           for seed in (4, 4, 5))
    assert first == again
    assert first.share != other.share


def test_more_draws_begin_with_the_fewer():
    def shares_of(draws):
        shares = []

        def measure(blank):
            shares.append(analyze(blank, INPUTS).layers["0"].effective_share)
            return {"output": usage}

        with_null({"output": usage}, model, measure, draws=draws, seed=6)
        return shares

    model = trained()
    usage = analyze(model, INPUTS)
    assert shares_of(5)[:2] == shares_of(2)


@pytest.mark.parametrize("make", [trained, stuck], ids=[REINITIALISED, PERMUTED])
def test_the_global_streams_and_the_models_gradients_are_left_alone(make):
    model = make()
    model(INPUTS).sum().backward()
    grads = [parameter.grad.clone() for parameter in model.parameters()]
    state = copy.deepcopy(model.state_dict())
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    analyze(model, INPUTS, null=2)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert after == before
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
    assert all(module.training for module in model.modules())


def test_the_global_stream_is_left_alone_when_a_measurement_raises():
    def measure(blank):
        raise RuntimeError("no")

    model = trained()
    usage, before = analyze(model, INPUTS), torch.get_rng_state()
    with pytest.raises(RuntimeError, match="no"):
        with_null({"output": usage}, model, measure, draws=1, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("draws", [0, -3])
def test_at_least_one_draw(draws):
    usage = analyze(trained(), INPUTS)
    with pytest.raises(ValueError, match=f"draws: expected .* at least 1, but got {draws}"):
        with_null({"output": usage}, trained(), lambda blank: {}, draws=draws, seed=0)


def test_a_seed_out_of_range():
    with pytest.raises(ValueError, match="seed: expected a whole number"):
        analyze(trained(), INPUTS, null=1, seed=-1)


def test_several_criteria_share_the_draws():
    model, names = trained(), ["output", "magnitude", "wanda"]
    together = analyze(model, INPUTS, criterion=names, null=4, seed=7)
    for name in names:
        alone = analyze(model, INPUTS, criterion=name, null=4, seed=7)
        assert together[name].null == alone.null
        assert together[name].layers["0"].null == alone.layers["0"].null


@pytest.mark.parametrize("criterion", ["output", "input", "wanda", "magnitude", "taylor"])
def test_a_large_layer_is_sampled_by_whole_units(criterion, monkeypatch):
    """120 of 480 units stand for all: about the same share, and the same scale of counts."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(30, 480), nn.ReLU(), nn.Linear(480, 2))
    data = [(INPUTS, torch.arange(50) % 2)]
    options = {"criterion": criterion, "null": 4, "seed": 8, "loss": nn.functional.cross_entropy}
    whole = analyze(model, data, **options).layers["0"].null
    monkeypatch.setattr(analyze_module, "MOST_IN_A_DRAW", 120 * 30)
    seen = []
    monkeypatch.setattr(analyze_module, "summarize", lambda part, shape, **how: seen.append(shape)
                        or summarize(part, shape, **how))
    sampled = analyze(model, data, **options).layers["0"].null
    assert seen.count((120, 30)) == 4
    assert sampled.share == pytest.approx(whole.share, rel=0.1)
    assert sampled.shift == pytest.approx(whole.shift, abs=0.1)
    again = analyze(model, data, **options).layers["0"].null
    assert again == sampled


def test_a_sampled_grouped_convolution(monkeypatch):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(8, 64, 3, groups=4), nn.ReLU(), nn.Flatten(),
                          nn.Linear(64 * 16, 2))
    images = torch.rand(10, 8, 6, 6, generator=torch.Generator().manual_seed(4))
    whole = analyze(model, images, criterion="wanda", null=4).layers["0"].null
    monkeypatch.setattr(analyze_module, "MOST_IN_A_DRAW", 16 * 18)
    sampled = analyze(model, images, criterion="wanda", null=4).layers["0"].null
    assert sampled.share == pytest.approx(whole.share, rel=0.05)
    assert sampled.share != whole.share


class Locked(nn.Sequential):
    def __init__(self, *modules: nn.Module) -> None:
        super().__init__(*modules)
        self.lock = threading.Lock()


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize(("make", "reason"), [
    (lambda: Locked(*trained()), "TypeError: cannot pickle '_thread.lock' object"),
    (lambda: nn.Sequential(nn.utils.weight_norm(nn.Linear(30, 4)), nn.Linear(4, 2)),
     "RuntimeError: Only Tensors created explicitly by the user .*"),
], ids=["lock", "weight norm"])
def test_a_model_that_cannot_be_copied(make, reason):
    data = [(INPUTS, torch.arange(50) % 2)]
    options = {"criterion": "taylor", "loss": nn.functional.cross_entropy}
    assert analyze(make(), data, **options).layers
    with pytest.raises(ValueError, match="^model: cannot be copied, which the null needs: "
                                         f"{reason}; use null=0$"):
        analyze(make(), data, null=2, **options)
