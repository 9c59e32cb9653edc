"""Saving a model so that it loads anywhere, and loading it: pt2 as a LoggedModel, safetensors.

May import: mlflow, torch, safetensors, names. Tests: ``tests/tracking/test_models.py``.
"""

from __future__ import annotations

import copy
import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

import mlflow
import numpy as np
import torch
from mlflow.entities import LoggedModelOutput, LoggedModelStatus
from mlflow.models import Model, ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types.schema import Schema, TensorSpec
from torch import Tensor, nn

__all__ = ["load_exported", "log_model", "read_tensors", "write_tensors"]

MODEL_NAME = "model"


def log_model(
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
    ``MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false``.

    Args:
        client: MLflow's.
        run_id: the run that the model comes from.
        experiment_id: that run's experiment.
        model: in any mode, on any device; an eval-mode copy on the CPU is exported.
        inputs: an example, shape (at least 2, ...).
        params: shown with the model.
        tags: shown with the model.

    Returns:
        The model's id and the size of its ``pt2`` file in bytes.

    Raises:
        ValueError: ``torch.export`` refuses the model.
    """
    example = inputs[:4].detach().cpu()
    exported = copy.deepcopy(model).cpu().eval()
    with torch.no_grad():
        outputs = exported(example)
    signature = ModelSignature(inputs=_schema(example), outputs=_schema(outputs))
    logged = client.create_logged_model(
        experiment_id, name=MODEL_NAME, source_run_id=run_id,
        params={key: str(value) for key, value in (params or {}).items()}, tags=dict(tags or {}))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                mlflow.pytorch.save_model(
                    exported,
                    path,
                    mlflow_model=Model(run_id=run_id, model_id=logged.model_id,
                                       model_uuid=logged.model_id),
                    signature=signature,
                    input_example=example.numpy(),
                    serialization_format="pt2",
                    pip_requirements=_requirements(),
                )
        except Exception as error:  # torch.export raises many kinds
            client.finalize_logged_model(logged.model_id, LoggedModelStatus.FAILED)
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"model: torch.export cannot save it as pt2: {reason}") from error
        size = sum(file.stat().st_size for file in path.rglob("*.pt2"))
        client.log_model_artifacts(logged.model_id, str(path))
    client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    return logged.model_id, size


def load_exported(uri: str) -> nn.Module:
    """The exported graph behind a model URI; its mode is fixed and its classes are gone.

    Raises:
        ValueError: nothing there, or no PyTorch model.
    """
    previous = os.environ.get("MLFLOW_ALLOW_PICKLE_DESERIALIZATION")
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = previous or "false"
    try:
        return mlflow.pytorch.load_model(uri)
    except Exception as error:
        raise ValueError(f"model URI {uri}: cannot be loaded: "
                         f"{' '.join(str(error).split())[:300]}") from error
    finally:
        if previous is None:
            del os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"]


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
