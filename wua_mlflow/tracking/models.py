"""Saving a model so that it loads anywhere, and loading it: pt2 as a LoggedModel, safetensors.

May import: mlflow, torch, safetensors, randomness. Tests: ``tests/tracking/test_models.py``.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import mlflow
import numpy as np
import torch
from mlflow.entities import LoggedModelOutput, LoggedModelStatus
from mlflow.models import Model, ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types.schema import Schema, TensorSpec
from torch import Tensor, nn

from wua_mlflow.randomness import isolated

__all__ = ["load_exported", "log_model", "read_tensors", "write_tensors"]

MODEL_NAME = "model"
ALLOW_PICKLE = "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"
EXAMPLES = 4
"""Samples in the input example that is stored with the model."""


def log_model(  # noqa: PLR0913 - where to, what, and what is shown beside it
    client: MlflowClient,
    run_id: str,
    experiment_id: str,
    model: nn.Module,
    inputs: Tensor,
    *,
    params: Mapping[str, object] | None = None,
    tags: Mapping[str, str] | None = None,
) -> tuple[str, int]:
    """Save ``model`` as a LoggedModel of the run, in ``pt2``, with a dynamic batch size.

    The requirements are given, not inferred, and nothing is pickled: it loads with
    ``MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false`` (MLflow wants torch 2.10 to be sure of that).

    Args:
        client: MLflow's.
        run_id: the run that the model comes from.
        experiment_id: that run's experiment.
        model: in any mode, on any device; an eval-mode copy on the CPU is exported.
        inputs: an example, shape (at least 1, ...).
        params: shown with the model.
        tags: shown with the model.

    Returns:
        The model's id and the size of its ``pt2`` file in bytes.

    Raises:
        ValueError: ``torch.export`` refuses the model, or fixes its batch size, or the model does
            not turn a tensor of n samples into a tensor of n rows. The LoggedModel is FAILED then.
    """
    logged = client.create_logged_model(
        experiment_id, name=MODEL_NAME, source_run_id=run_id,
        params={key: str(value) for key, value in (params or {}).items()}, tags=dict(tags or {}))
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model"
            with isolated(), _quiet():
                _export(model, inputs, path,
                        Model(run_id=run_id, model_id=logged.model_id, model_uuid=logged.model_id))
            size = sum(file.stat().st_size for file in path.rglob("*.pt2"))
            client.log_model_artifacts(logged.model_id, str(path))
    except BaseException:
        with contextlib.suppress(Exception):  # the store's own failure must not hide the error
            client.finalize_logged_model(logged.model_id, LoggedModelStatus.FAILED)
        raise
    client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    return logged.model_id, size


def _export(model: nn.Module, inputs: Tensor, path: Path, entry: Model) -> None:
    """Write the model's folder, and see that what it holds takes other batch sizes."""
    if not len(inputs):
        raise ValueError("inputs: expected at least one sample, but got none")
    example = inputs[:EXAMPLES].detach().cpu()
    if len(example) == 1:  # torch.export takes a size of 1 for a constant
        example = torch.cat([example, example])
    with _said("model: cannot be copied and run on the CPU"), torch.no_grad():
        exported = copy.deepcopy(getattr(model, "_orig_mod", model)).cpu().eval()
        outputs = exported(example)
    _check_rows(outputs, len(example))
    with _said("model: torch.export cannot save it as pt2"):
        mlflow.pytorch.save_model(
            exported,
            path,
            mlflow_model=entry,
            signature=ModelSignature(inputs=_schema(example), outputs=_schema(outputs)),
            input_example=example.numpy(),
            serialization_format="pt2",
            pip_requirements=_requirements(),
        )
        written = torch.export.load(next(path.rglob("*.pt2"))).module()
    with _said("model: expected one that takes batches of any size, but as exported it does not"):
        for batch in (example[:1], torch.cat([example, example[:1]])):
            _check_rows(written(batch), len(batch))


@contextlib.contextmanager
def _said(what: str) -> Iterator[None]:
    """Any error of torch, MLflow or the user's model as a ValueError in one line."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"{what}: {reason}") from error


def _check_rows(outputs: object, samples: int) -> None:
    if not isinstance(outputs, Tensor):
        raise ValueError(f"model: expected one tensor as its output, but got "
                         f"{type(outputs).__name__}")
    if outputs.shape[:1] != (samples,):
        raise ValueError(f"model: expected an output of {samples} rows for {samples} samples, but "
                         f"got one of shape {tuple(outputs.shape)}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No warnings, and nothing of what torch.export logs and prints beside the error it raises."""
    level = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(level)


def load_exported(uri: str) -> nn.Module:
    """The exported graph behind a model URI; its mode is fixed and its classes are gone.

    Raises:
        ValueError: nothing there, or no PyTorch model.
    """
    previous = os.environ.get(ALLOW_PICKLE)
    os.environ[ALLOW_PICKLE] = previous or "false"
    try:
        with _said(f"model URI {uri}: cannot be loaded"):
            return mlflow.pytorch.load_model(uri)
    finally:
        if previous is None:
            del os.environ[ALLOW_PICKLE]


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors, copied to the CPU, shared memory written once a name."""
    from safetensors.torch import save_file

    save_file({name: tensor.detach().cpu().contiguous().clone()
               for name, tensor in tensors.items()}, str(path))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read what ``write_tensors`` wrote."""
    from safetensors.torch import load_file

    return load_file(str(path))


def _schema(tensor: Tensor) -> Schema:
    shape = (-1, *tensor.shape[1:])
    return Schema([TensorSpec(np.dtype(str(tensor.dtype).removeprefix("torch.")), shape)])


def _requirements() -> list[str]:
    version = torch.__version__.split("+")[0]
    return [f"mlflow=={mlflow.__version__}", f"torch=={version}", f"numpy=={np.__version__}"]
