"""A model, its gradients and the random streams are as before, also when the forward raises."""

from contextlib import suppress

import pytest
import torch
from torch import nn

from tests.networks import kept_streams, restless, snapshot
from wua_mlflow.hooks import evaluating, reading, running, unwrapped


@pytest.fixture(autouse=True)
def _seeded_globals():
    with kept_streams():
        yield


@pytest.mark.parametrize("grad", [False, True])
def test_the_model_is_left_as_found(grad):
    model = restless()
    before = snapshot(model)
    with evaluating(model, grad=grad):  # it is not called
        pass
    assert snapshot(model) == before
    with evaluating(model, grad=grad) as same:
        same(torch.rand(2, 3))
        assert same is model and model.calls == 2  # the forward that counts has run
    assert snapshot(model) == before
    with pytest.raises(RuntimeError, match="more than 100"), evaluating(model, grad=grad):
        model(torch.full((2, 3), 101.0))
    assert snapshot(model) == before


def test_inside_all_is_in_eval_mode_and_floating_point_parameters_have_gradients_if_asked_for():
    model = restless()
    model.whole = nn.Parameter(torch.ones(2, dtype=torch.int64), requires_grad=False)
    for context in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with context():
            enabled = torch.is_grad_enabled()
            with evaluating(model):
                assert not any(module.training for module in model.modules())
                assert not model(torch.rand(2, 3)).requires_grad
            with evaluating(model, grad=True):
                assert [name for name, p in model.named_parameters() if not p.requires_grad] \
                    == ["whole"]
                assert model(torch.rand(2, 3)).requires_grad
            assert torch.is_grad_enabled() == enabled
    assert not model.first.bias.requires_grad
    with torch.inference_mode():
        model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="model: .* made in inference mode"), \
            evaluating(model, grad=True):
        pass
    with evaluating(model):
        assert model(torch.ones(1, 2)).shape == (1, 2)


CHANGES = {
    "in place": lambda part, x: part.state.add_(x.mean(0)),
    "unnoticed by autograd": lambda part, x: part.state.numpy().fill(5.0),
    "not a number": lambda part, x: part.state.fill_(torch.nan),
    "replaced": lambda part, x: setattr(part, "state", part.state + 1),
    "removed": lambda part, x: delattr(part, "state"),
    "added": lambda part, x: part.register_buffer("more", x),
}


@pytest.mark.parametrize("how", CHANGES)
def test_buffers_are_put_back_however_the_forward_changed_them(how):
    class Changing(nn.Identity):
        def forward(self, x):
            CHANGES[how](self, x)
            return x

    model, state = nn.Sequential(Changing()), torch.zeros(3)
    model[0].register_buffer("state", state)
    with evaluating(model):
        model(torch.rand(4, 3) + 1)
        assert [id(buffer) for buffer in model.buffers()] != [id(state)] or state.any()
    assert dict(model.named_buffers()) == {"0.state": state}
    assert model[0].state is state
    assert state.tolist() == [0.0] * 3


def test_an_untouched_buffer_is_not_written_to_and_an_embedding_that_shrinks_is_as_before():
    model = nn.BatchNorm1d(3)
    output = model.running_mean * torch.ones(3, requires_grad=True)
    with evaluating(model):
        model(torch.rand(4, 3))
    output.sum().backward()  # would raise if the buffer had been written to since
    model = nn.Sequential(nn.Embedding(20, 3, max_norm=0.1), nn.Linear(3, 2))
    before = model[0].weight.detach().clone()
    with evaluating(model):
        model(torch.arange(20))
        assert not torch.equal(model[0].weight, before)
    assert torch.equal(model[0].weight, before)


def named(model):
    return {module: name for name, module in model.named_modules()}


def test_running_names_the_modules_under_way_and_counts_their_calls():
    model = restless().eval()
    stacks = []
    model.twice.register_forward_hook(lambda *_: stacks.append(list(state.stack)))
    before = snapshot(model)
    with evaluating(model), running(model, named(model)) as state:
        model(torch.rand(2, 3))
    assert state.stack == [] and stacks == [["", "twice"], ["", "twice"]]
    assert state.calls == {"": 1, "first": 1, "drop": 1, "twice": 2}
    assert snapshot(model) == before


def test_running_when_a_forward_raises():
    """The stack is left as it was then; an error that the model itself caught is passed over."""

    class Fragile(nn.Module):
        def forward(self, x):
            raise KeyError("inside")

    class Careful(nn.Sequential):
        def forward(self, x):
            with suppress(KeyError):
                self[0](x)
            return self[1](x)

    x = torch.rand(1)
    model = nn.Sequential(nn.Sequential(nn.Identity(), Fragile()))
    before = snapshot(model)
    with pytest.raises(KeyError, match="inside"), running(model, named(model)) as state:
        model(x)
    assert state.stack == ["", "0", "0.1"]
    assert snapshot(model) == before
    model = nn.Sequential(Careful(Fragile(), nn.Identity()))
    with running(model, named(model)) as state:
        model(model(x))
    assert state.stack == []
    assert state.calls == {"": 2, "0": 2, "0.0": 2, "0.1": 2}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_wrapped_model_is_unwrapped_and_what_is_no_module_in_python_refused():
    inner = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    for model in (inner, torch.compile(inner, backend="eager"), nn.DataParallel(inner),
                  nn.DataParallel(torch.compile(inner, backend="eager"))):
        assert unwrapped(model) is inner
    scripted = torch.jit.script(nn.Linear(2, 2))
    for model, kind in ((None, "NoneType"), (abs, "builtin"), (scripted, "RecursiveScriptModule")):
        with pytest.raises(ValueError, match=r"model: expected a torch\.nn\.Module that runs in "
                                             f"Python, but got {kind}"):
            unwrapped(model)
    with evaluating(nn.Sequential(nn.BatchNorm1d(2), scripted)) as model:  # as a part it may be
        assert model(torch.ones(3, 2)).shape == (3, 2)


def test_compiled_parts_run_as_python_and_compile_again_afterwards():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    class Part(nn.Linear):
        def forward(self, x):
            return super().forward(x).relu()

    part = Part(2, 3)
    model = nn.Sequential(part, nn.ReLU())
    part.compile(backend=backend)
    with evaluating(model), running(model, {part: "part"}) as state:
        model(torch.rand(1, 2))
    assert graphs == [], "the compiled part ran compiled"
    assert state.calls["part"] == 1
    model(torch.rand(1, 2))
    assert len(graphs) == 1, "the stance was not put back"


def test_a_graph_from_pt2_keeps_its_mode():
    net = nn.Sequential(nn.Linear(2, 3), nn.Dropout(), nn.Linear(3, 1)).eval()
    batch = torch.export.Dim("batch")
    graph = torch.export.export(net, (torch.rand(4, 2),), dynamic_shapes=({0: batch},)).module()
    with pytest.raises(NotImplementedError):
        graph.eval()
    modes, inputs = [module.training for module in graph.modules()], torch.rand(7, 2)
    with evaluating(graph):
        torch.testing.assert_close(graph(inputs), net(inputs).detach())
    assert [module.training for module in graph.modules()] == modes


def test_what_a_module_reads_is_changed_and_restored_when_the_forward_raises():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    x, before = torch.rand(4, 3), snapshot(model)
    plain = model(x)
    with reading({model[1]: lambda inputs: 2 * inputs, model[0]: lambda inputs: None}):
        assert torch.allclose(model(x), 2 * (plain - model[1].bias) + model[1].bias, atol=1e-6)
        assert torch.equal(model[1](input=torch.zeros(1, 2)), model[1].bias[None])
    with pytest.raises(RuntimeError), reading({model[1]: lambda inputs: inputs[:, :1]}):
        model(x)
    assert snapshot(model) == before and torch.equal(model(x), plain)
    with reading({(model := nn.Identity()): torch.zeros_like}):  # what is no tensor is let through
        assert model((1.0, 2.0)) == (1.0, 2.0) and not model(torch.ones(2)).any()
