"""The tutorial's figures to the last printed digit, on its recipe written out in plain torch."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import torch
from matplotlib import pyplot
from torch import nn

import wua_mlflow as wua
from wua_mlflow.tutorial import flops_text
from wua_mlflow.usage.results import ModelUsage
from wua_mlflow.widths.recommend import effective_widths, recommend_widths


def train(hidden: int, epochs: int, x: torch.Tensor, y: torch.Tensor) -> nn.Sequential:
    model = nn.Sequential()
    model.add_module("fc1", nn.Linear(2, hidden))
    model.add_module("relu", nn.ReLU())
    model.add_module("fc2", nn.Linear(hidden, 1))
    model.add_module("sigmoid", nn.Sigmoid())
    criterion, optimizer = nn.BCELoss(), torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(epochs):
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def case():
    """Both networks, the small one from the random stream that the big one left, wua in between."""
    states = np.random.get_state(), torch.get_rng_state()
    torch.manual_seed(42)
    np.random.seed(42)
    raw = np.random.rand(1000, 2)
    x = torch.tensor(raw, dtype=torch.float32)
    y = torch.tensor(raw[:, 0] + raw[:, 1] > 1, dtype=torch.float32).reshape(-1, 1)
    big = train(10, 50, x, y)
    figures = {"big": measure(big, 50, x, y)}
    small = train(7, 60, x, y)
    figures["small"] = measure(small, 60, x, y)
    np.random.set_state(states[0])
    torch.set_rng_state(states[1])
    return SimpleNamespace(x=x, y=y, big=big, small=small, figures=figures)


def measure(model: nn.Module, epochs: int, x: torch.Tensor, y: torch.Tensor) -> SimpleNamespace:
    """All that the tutorial measures, none of which may draw from torch's stream."""
    layers = wua.compute_weight_importance(model, x, skip_last=True)
    (importance, weights, name), = layers
    report, normalized = wua.generate_report(importance, weights)
    wua.show(model, x)
    wua.plot_importance_histogram(normalized, report["entropy"])
    training, inference = wua.estimate_flops(model, epochs, x)
    with torch.no_grad():
        accuracy = ((model(x) > 0.5).float() == y).float().mean().item()
    return SimpleNamespace(name=name, report=report, normalized=normalized, training=training,
                           inference=inference, accuracy=accuracy)


TABLE = {
    "big": ("12,200,000", "122,000", "0.8850", "20", "10", "2.7584", "15.7751", "65.00%", "0.00%"),
    "small": ("10,320,000", "86,000", "0.8730", "14", "7", "2.4191", "11.2361", "71.43%", "0.00%"),
}


@pytest.mark.parametrize("which", TABLE)
def test_every_figure_of_the_table(case, which):
    measured = case.figures[which]
    report = measured.report
    assert (measured.name, report["low_contrib_percentage"]) == ("fc1", 0.0)
    assert (
        f"{measured.training:,}", f"{measured.inference:,}", f"{measured.accuracy:.4f}",
        f"{report['total_weights']}", f"{report['nodes']}", f"{report['entropy']:.4f}",
        f"{report['effective_weights']:.4f}", f"{report['top_90_percent_contrib']:.2%}",
        f"{report['low_contrib_percentage']:.2f}%") == TABLE[which]


def test_seven_of_ten_neurons_and_what_inference_saves(case):
    big, small = case.figures["big"], case.figures["small"]
    assert f"{big.inference / small.inference:.1f}" == "1.4"
    usage = wua.analyze(case.big, case.x)
    assert isinstance(usage, ModelUsage)
    assert effective_widths(usage, [10], [["fc1"]]) == (7,)
    share = usage.layers["fc1"].effective_share
    assert f"{10 * share:.2f}" == "7.89"
    assert wua.recommend_widths is recommend_widths


def test_the_tutorials_own_entropy_agrees_to_the_printed_digits(case):
    """Its library adds 1e-8 to p and normalizes again."""
    for figures in case.figures.values():
        p = figures.normalized + 1e-8
        assert f"{scipy.stats.entropy(p):.4f}" == f"{figures.report['entropy']:.4f}"
        assert f"{np.exp(scipy.stats.entropy(p)):.4f}" == (
            f"{figures.report['effective_weights']:.4f}")


def test_importance_by_hand(case):
    (importance, weights, name), = wua.compute_weight_importance(case.big, case.x.numpy())
    w = case.big.fc1.weight.detach().double().numpy().T
    z = case.x.double().numpy() @ w + case.big.fc1.bias.detach().double().numpy()
    np.testing.assert_allclose(importance, np.abs(w) * np.abs(z.mean(0)), rtol=1e-5)
    np.testing.assert_array_equal(weights, w)
    assert (importance.shape, name) == ((2, 10), "fc1")
    assert case.figures["big"].normalized == pytest.approx((importance / importance.sum()).ravel())


def test_the_last_layer_is_skipped_where_there_are_two():
    torch.manual_seed(0)
    chain = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    x = np.random.default_rng(0).random((20, 3))

    def names(model):
        return [name for _, _, name in wua.compute_weight_importance(model, x)]

    assert names(chain) == ["0", "2"]
    assert names(nn.Sequential(nn.Linear(3, 4))) == ["0"]
    every = wua.compute_weight_importance(chain, x, False)
    assert [(name, importance.shape) for importance, _, name in every] == [
        ("0", (3, 4)), ("2", (4, 5)), ("4", (5, 2))]


def test_a_later_layer_sees_its_real_input():
    torch.manual_seed(1)
    chain = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    x = torch.randn(30, 3, generator=torch.Generator().manual_seed(2))
    (w0, b0), (w2, b2) = ((layer.weight.detach().numpy().T, layer.bias.detach().numpy())
                          for layer in (chain[0], chain[2]))
    z = np.maximum(x.numpy() @ w0 + b0, 0) @ w2 + b2
    importance = wua.compute_weight_importance(chain, x)[1][0]
    np.testing.assert_allclose(importance, np.abs(w2) * np.abs(z.mean(0)), rtol=1e-4, atol=1e-7)


def test_the_report_by_hand_also_on_importance_that_is_all_zero():
    importance = np.array([[4.0, 0.005, 3.0], [2.0, 0.995, 0.0]])  # sum 10
    report, normalized = wua.generate_report(importance, -importance)
    assert list(report) == ["total_weights", "nodes", "entropy", "effective_weights",
                            "top_90_percent_contrib", "low_contrib_percentage"]
    assert (report["total_weights"], report["nodes"], normalized.shape) == (6, 3, (6,))
    assert report["entropy"] == pytest.approx(scipy.stats.entropy(importance.ravel()))
    assert report["effective_weights"] == pytest.approx(np.exp(report["entropy"]))
    assert report["top_90_percent_contrib"] == 3 / 6  # 4 + 3 + 2 of 10
    assert report["low_contrib_percentage"] == pytest.approx(100 * 2 / 6)
    assert normalized == pytest.approx([0.4, 0.0005, 0.3, 0.2, 0.0995, 0.0])
    report, normalized = wua.generate_report(np.zeros((2, 3)), np.ones((2, 3)))
    assert (report["effective_weights"], report["entropy"]) == (0.0, 0.0)
    assert report["low_contrib_percentage"] == 100.0
    assert normalized.tolist() == [0.0] * 6


def test_a_large_layer_keeps_its_entropy():
    """Where adding 1e-8 to p, and a float32 running sum, do not."""
    importance = np.random.default_rng(3).exponential(size=(1000, 2000))
    report, _ = wua.generate_report(importance, importance)
    exact = scipy.stats.entropy(importance.ravel())
    assert report["entropy"] == pytest.approx(exact, abs=1e-9)
    descending = np.sort(importance.ravel())[::-1].cumsum()
    count = np.searchsorted(descending, 0.9 * descending[-1]) + 1
    assert report["top_90_percent_contrib"] == count / importance.size


def test_what_is_printed(case, capsys):
    wua.print_report(case.figures["big"].report)
    assert capsys.readouterr().out.splitlines() == [
        "Total weights: 20", "Nodes: 10", "Entropy: 2.7584", "Effective weights: 15.7751",
        "Contribution of top 90% of weights: 65.00%", "Percentage of low weights (<1e-2): 0.00%"]
    wua.print_flops_report(case.small, nb_epochs=60, dataset=case.x)
    assert capsys.readouterr().out == flops_text(10_320_000, 86_000) + "\n" == \
        "FLOPs, training: 10,320,000\nFLOPs, inference: 86,000\n"


def test_flops_are_counted_by_hand_but_not_those_that_ptflops_cannot_count():
    """Linear: in · out + out; ReLU: its units, twice; sigmoid: nothing. Twice the sum a sample."""
    model = nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 3), nn.Sigmoid())
    forward = 2 * (5 * 9 + 9 + 2 * 9 + 9 * 3 + 3)
    x = np.zeros((11, 5), dtype=np.float32)
    assert wua.estimate_flops(model, 4, x) == (2 * forward * 11 * 4, forward * 11)
    assert wua.estimate_flops(model, 4, torch.from_numpy(x)) == wua.estimate_flops(model, 4, x)

    class Two(nn.Module):
        def forward(self, a, b):
            return a + b

    with pytest.warns(UserWarning, match="ptflops cannot count Two"), \
            pytest.raises(ValueError, match="model: ptflops cannot count it; count_flops"):
        wua.estimate_flops(Two(), 1, np.zeros((3, 2)))


def test_the_histogram_shows_every_weight(case):
    normalized = case.figures["big"].normalized
    figure = wua.plot_importance_histogram(normalized, case.figures["big"].report["entropy"])
    bars = figure.axes[0].patches
    heights = np.concatenate([patch.get_data().values for patch in bars])
    counts, _ = np.histogram(normalized, bins=len(heights), range=(0, normalized.max()))
    assert heights.tolist() == counts.tolist()
    assert heights.sum() == 20


def test_the_diagram_has_a_line_a_weight(case):
    figure = wua.show(case.big, case.x)
    widths, colours = [], []
    for collection in figure.axes[0].collections:
        if type(collection).__name__ == "LineCollection":
            widths += list(np.broadcast_to(collection.get_linewidths(),
                                           len(collection.get_segments())))
            colours += list(np.broadcast_to(collection.get_colors(),
                                            (len(collection.get_segments()), 4)))
    weights = np.abs(np.concatenate([
        layer.weight.detach().numpy().ravel() for layer in (case.big.fc1, case.big.fc2)]))
    assert sorted(widths) == pytest.approx(sorted(np.clip(3 * weights, 0.2, 3)))
    red = sum(1 for colour in colours if colour[0] > 0.6 and colour[1] < 0.4)
    assert red == (weights > 0.1).sum()


def test_no_window_is_opened_and_nothing_is_drawn_from_the_random_stream(case):
    windows = pyplot.get_fignums()
    stream = torch.get_rng_state(), np.random.get_state()[1].tolist()
    measure(case.big, 50, case.x, case.y)
    assert pyplot.get_fignums() == windows
    assert torch.equal(torch.get_rng_state(), stream[0])
    assert np.random.get_state()[1].tolist() == stream[1]


def test_read_only_arrays_and_lists_are_taken(case):
    array = case.x.numpy().copy()
    array.flags.writeable = False
    expected = wua.compute_weight_importance(case.big, case.x)[0][0]
    for data in (array, array.tolist()):
        np.testing.assert_allclose(
            wua.compute_weight_importance(case.big, data)[0][0], expected, rtol=1e-6)
    importance = np.broadcast_to(1.0, (2, 4))
    assert wua.generate_report(importance, importance)[0]["effective_weights"] == pytest.approx(8)


def test_what_is_no_importance_and_networks_that_do_not_fit():
    for importance, weights, message in (
            (np.ones((2, 3)), np.ones((3, 2)), r"same shape .* but got \(2, 3\) and \(3, 2\)"),
            (1.0, 1.0, r"same shape .* but got \(\) and \(\)"),
            (np.array([[1.0, -1.0]]), np.ones((1, 2)), "negative"),
            (np.array([[1.0, np.nan]]), np.ones((1, 2)), "NaN")):
        with pytest.raises(ValueError, match=f"importance.*: expected .*{message}"):
            wua.generate_report(importance, weights)
    with pytest.raises(ValueError, match="model: expected at least one Linear layer"):
        wua.compute_weight_importance(nn.ReLU(), np.zeros((3, 2)))
    for network in (nn.ReLU(), nn.Sequential(nn.Linear(2, 3), nn.Linear(4, 1))):
        with pytest.raises(ValueError):
            wua.show(network)
