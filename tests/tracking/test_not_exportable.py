"""Models that cannot be saved so that they are served: one line, and no half of one is left."""

from __future__ import annotations

import pytest
import torch
from mlflow.tracking import MlflowClient
from torch import nn

from tests.tracking import saving
from tests.tracking.saving import Branching, log, mlp, only_model
from wua_mlflow.tracking.models import NotExportable

run = saving.run


class FixedBatch(Branching):
    """Takes batches of four alone."""

    def forward(self, x):
        return self.layer(x) + x.reshape(4, 2).sum()


class Tracing(Branching):
    """Computes another function while it is traced."""

    def forward(self, x):
        return self.layer(x) if torch.compiler.is_compiling() else -self.layer(x)


class SingleRow(Branching):
    """A batch of one loses its rows."""

    def forward(self, x):
        return self.layer(x).squeeze()


class Pair(Branching):
    """Two outputs."""

    def forward(self, x):
        return self.layer(x), x


class Summed(Branching):
    """One output for the whole batch."""

    def forward(self, x):
        return self.layer(x).sum()


@pytest.mark.parametrize(("build", "said"), [
    (Branching, "model: torch.export cannot save it as pt2: Could not guard on data-dependent"),
    (FixedBatch, "model: expected one that takes batches of any size, but as exported it does not"),
    (Pair, "model: expected one tensor as its output, but got tuple"),
    (Summed, r"model: expected an output of 4 rows for 4 samples, but got one of shape \(\)"),
    (SingleRow, r"model: expected an output of 1 rows for 1 samples, but got one of shape \(\)"),
    (Tracing, "model: torch.export makes something of it that computes another result"),
    (lambda: nn.Linear(3, 1), "model: cannot be copied and run on the CPU: mat1 and mat2 shapes"),
])
def test_a_model_that_cannot_be_saved_is_one_line_and_failed(run, build, said, capfd):
    capfd.readouterr()
    with pytest.raises(NotExportable, match=f"^{said}") as caught:
        log(run, build(), torch.rand(9, 2))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert capfd.readouterr() == ("", "")
    store, run_id = run
    assert only_model(run).status == "FAILED"
    assert store.client.get_run(run_id).outputs.model_outputs == []


@pytest.mark.parametrize(("inputs", "said"), [
    (torch.rand(0, 2), "inputs: expected at least one sample, but got none"),
    (torch.rand(5, 2, dtype=torch.bfloat16), "bfloat16"),
])
def test_inputs_that_no_example_can_be_made_of(run, inputs, said):
    with pytest.raises(ValueError, match=said):
        log(run, mlp().to(inputs.dtype), inputs)
    assert only_model(run).status == "FAILED"


def test_several_inputs_are_not_served(run):
    with pytest.raises(NotExportable, match="^model: MLflow serves models of one input tensor, but "
                                            "this one takes a tuple$"):
        log(run, nn.Bilinear(2, 2, 1), (torch.rand(9, 2), torch.rand(9, 2)))
    assert only_model(run).status == "FAILED"


def test_what_is_no_python_module_is_refused_before_anything_is_logged(run):
    scripted = torch.jit.ScriptModule()
    with pytest.raises(ValueError, match="^model: expected a torch.nn.Module that runs in Python"):
        log(run, scripted, torch.rand(9, 2))
    store, _ = run
    assert store.client.search_logged_models([store.experiment_id]) == []


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError])
def test_a_model_that_is_not_all_there_is_failed(run, monkeypatch, stop):
    def stops(*_):
        raise stop

    monkeypatch.setattr(MlflowClient, "log_model_artifacts", stops)
    with pytest.raises(stop):
        log(run, mlp(), torch.rand(9, 2))
    assert only_model(run).status == "FAILED"


def test_a_file_that_cannot_be_written_is_no_fault_of_the_model(run):
    def full(path):
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        log(run, mlp(), torch.rand(9, 2), files={"state/model.safetensors": full})
    assert only_model(run).status == "FAILED"
