"""Saving a model so that it loads anywhere, and loading it: pt2 as a LoggedModel, safetensors.

Tests: ``tests/tracking/test_models.py``, served: ``tests/pipeline/test_serving.py``.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import torch
from mlflow.entities import LoggedModelOutput, LoggedModelStatus
from mlflow.models import Model, ModelSignature
from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.tracking import MlflowClient
from mlflow.tracking.context.registry import resolve_tags
from mlflow.types.schema import ColSpec, Schema, TensorSpec
from torch import Tensor, nn

from wua_mlflow.hooks import unwrapped
from wua_mlflow.module_attributes import copied
from wua_mlflow.redaction import redacted
from wua_mlflow.rng import isolated
from wua_mlflow.tracking.exported_archive import foreign_code
from wua_mlflow.tracking.log import Files, write_files

__all__ = [
    "EXAMPLES", "NotExportable", "load_exported", "log_model", "read_tensors",
    "write_tensors",
]


MODEL_NAME = "model"
FORBIDDEN = set("/:.%\"'")
"""In a LoggedModel's name."""
ALLOW_PICKLE = "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"
EXAMPLES = 4
"""Samples in the input example that is stored with the model."""
RELATIVE, ABSOLUTE = 1e-2, 1e-3
"""Between the model and its export: kernels round differently, a lost branch is far off."""


class NotExportable(ValueError):  # noqa: N818 - named by what the model is
    """The model cannot be saved as ``pt2`` and served; its weights can still be kept."""


def log_model(  # noqa: PLR0913 - where to, what, and what is shown beside it
    client: MlflowClient,
    run_id: str,
    experiment_id: str,
    model: nn.Module,
    inputs: Tensor,
    *,
    name: str = MODEL_NAME,
    model_type: str | None = None,
    params: Mapping[str, object] | None = None,
    tags: Mapping[str, str] | None = None,
    files: Files | None = None,
    metadata: Mapping[str, str] | None = None,
    columns: Sequence[str] = (),
) -> tuple[str, int]:
    """Save ``model`` as a LoggedModel of the run, in ``pt2``, with a dynamic batch size.

    The requirements are given, not inferred, and nothing is pickled: it loads with
    ``MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false`` (MLflow wants torch 2.10 to be sure of that).
    MLflow's pyfunc serves it on the CPU, also on a machine with a GPU.

    Args:
        client: MLflow's.
        run_id: the run that the model comes from.
        experiment_id: that run's experiment.
        model: in any mode, on any device; an eval-mode copy on the CPU is exported.
        inputs: an example, shape (at least 1, ...).
        name: what it is called among the run's models; MLflow allows no ``/ : . %`` and no quotes.
        model_type: shown with the model, as ``classifier`` or ``regressor``.
        params: shown with the model.
        tags: shown with the model, with those that MLflow gives one: user, source, commit.
        files: kept in the model's folder too, as ``log.write`` takes them: its weights and what
            it is built from, for whoever has this folder alone.
        metadata: kept in its ``MLmodel``, where ``mlflow.models.get_model_info`` finds it.
        columns: names of the inputs (samples, columns), float32, where the signature is to name
            them: the model is served frames then, not arrays.

    Returns:
        The model's id and the size of its ``pt2`` file in bytes.

    Raises:
        NotExportable: ``torch.export`` refuses the model, fixes its batch size, or makes of it
            something that computes another result; or the model does not turn one tensor of n
            samples into one of n rows. The LoggedModel is FAILED then, and the run does not name
            it.
        ValueError: no input, a name that MLflow does not allow, or what is no module that runs in
            Python.
    """
    model = unwrapped(model)
    if not name or set(name) & FORBIDDEN:
        raise ValueError(f"name: expected at least one character, and none of "
                         f"{' '.join(sorted(FORBIDDEN))}, but got '{name}'")
    logged = client.create_logged_model(
        experiment_id, name=name, source_run_id=run_id, model_type=model_type,
        params={key: redacted(str(value)) for key, value in (params or {}).items()},
        tags={key: redacted(str(value)) for key, value in resolve_tags(dict(tags or {})).items()})
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model"
            with isolated(), _quiet():
                _export(model, inputs, path,
                        Model(run_id=run_id, model_id=logged.model_id, model_uuid=logged.model_id,
                              metadata=dict(metadata or {})), columns)
            size = sum(file.stat().st_size for file in path.rglob("*.pt2"))
            write_files(path, files or {})
            client.log_model_artifacts(logged.model_id, str(path))
    except BaseException:
        with contextlib.suppress(Exception):  # the store's own failure must not hide the error
            client.finalize_logged_model(logged.model_id, LoggedModelStatus.FAILED)
        raise
    client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    return logged.model_id, size


def _export(
    model: nn.Module, inputs: Tensor, path: Path, entry: Model, columns: Sequence[str]
) -> None:
    """Write the model's folder, and see that what it holds computes the same at other sizes.

    ``torch.export`` takes ``len(x)`` for a constant, but not where it reads the forward's bytecode
    (``strict``), which is slower and takes fewer models: so that comes second.
    """
    example = _example(inputs)
    with _refusing("cannot be copied and run on the CPU"), torch.no_grad():
        exported = copied(model).cpu().eval()
        outputs = exported(example)
    _check_rows(outputs, len(example))
    try:
        written = _written(exported, example, outputs, path, entry)
        _compare(written, exported, example)
    except NotExportable as refused:
        try:
            graph = torch.export.export(exported, (example,), strict=True,
                                        dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
            shutil.rmtree(path, ignore_errors=True)
            written = _written(graph, example, outputs, path, entry)
            _compare(written, exported, example)
        except OSError:
            raise
        except Exception:
            raise refused from None
    # the graph holds CPU tensors, and MLflow would take a GPU where there is one, and fail
    entry.flavors["python_function"]["config"] = {"device": "cpu"}
    if columns:
        _name_columns(entry, example, outputs, path, columns)
    entry.save(str(path / MLMODEL_FILE_NAME))


def _name_columns(
    entry: Model, example: Tensor, outputs: Tensor, path: Path, columns: Sequence[str]
) -> None:
    """A signature and an example by the columns' names; MLflow saves pt2 with tensors' alone."""
    entry.signature = ModelSignature(
        inputs=Schema([ColSpec("float", name) for name in columns]), outputs=_schema(outputs))
    info = entry.saved_input_example_info or {}
    frame = json.loads(pd.DataFrame(
        example.numpy().round(5) + 0.0, columns=list(columns)).to_json(orient="split"))
    del frame["index"]
    for name, content in ((info["artifact_path"], frame),
                          (info["serving_input_path"], {"dataframe_split": frame})):
        (path / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
    entry.saved_input_example_info = {**info, "type": "dataframe", "pandas_orient": "split"}


def _written(
    model: nn.Module, example: Tensor, outputs: Tensor, path: Path, entry: Model
) -> nn.Module:
    """What MLflow saves of a model, loaded again."""
    with _refusing("torch.export cannot save it as pt2"):
        mlflow.pytorch.save_model(
            model,
            path,
            mlflow_model=entry,
            signature=ModelSignature(inputs=_schema(example), outputs=_schema(outputs)),
            input_example=example.numpy(),
            serialization_format="pt2",
            pip_requirements=_requirements(),
        )
        return torch.export.load(next(path.rglob("*.pt2"))).module()


def _example(inputs: Tensor) -> Tensor:
    if not isinstance(inputs, Tensor):
        raise NotExportable(f"model: MLflow serves models of one input tensor, but this one takes "
                            f"a {type(inputs).__name__}")
    if not len(inputs):
        raise ValueError("inputs: expected at least one sample, but got none")
    example = inputs[:EXAMPLES].detach().cpu()
    # torch.export takes a size of 1 for a constant
    return torch.cat([example, example]) if len(example) == 1 else example


def _compare(written: nn.Module, model: nn.Module, example: Tensor) -> None:
    """Whether both compute the same at batch sizes that the export has not seen."""
    for batch in (example[:1], torch.cat([example, example[:1]])):
        with _refusing("expected one that takes batches of any size, but as exported it does not "
                       "(its forward takes the batch size for a constant)"), \
                torch.no_grad():
            answers = []
            for network in (written, model):
                torch.manual_seed(0)
                outputs = network(batch)
                _check_rows(outputs, len(batch))
                answers.append(outputs.double())
        if not torch.allclose(answers[0], answers[1], RELATIVE, ABSOLUTE, equal_nan=True):
            raise NotExportable("model: torch.export makes something of it that computes another "
                                "result; a condition on the data may be the cause")


@contextlib.contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Any error of torch, MLflow or the model as a line; a full disk is not the model's fault."""
    try:
        yield
    except (NotExportable, OSError):
        raise
    except Exception as error:
        raise NotExportable(f"model: {what}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _check_rows(outputs: object, samples: int) -> None:
    if not isinstance(outputs, Tensor):
        raise NotExportable(f"model: expected one tensor as its output, but got "
                            f"{type(outputs).__name__}")
    if outputs.shape[:1] != (samples,):
        raise NotExportable(f"model: expected an output of {samples} rows for {samples} samples, "
                            f"but got one of shape {tuple(outputs.shape)}")


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


PICKLE_RISK = ("it is pickled, and unpickling runs whatever code its author put in; "
               "--trust pickle loads it all the same")
CODE_RISK = ("it brings Python files of its own, which would be imported before yours; "
             "--trust code loads it all the same")
EXPORTED = "model.pt2"


def load_exported(uri: str, *, pickle: bool = False, code: bool = False) -> nn.Module:
    """The exported graph behind a model URI; its mode is fixed and its classes are gone.

    MLflow itself puts a model's own Python files in front of ``sys.path``, and imports the module
    that the model names as its pickle module, before it looks whether pickle is allowed.

    Args:
        uri: of a model with MLflow's flavour for PyTorch.
        pickle: whether a pickled module is loaded too, and unpickled.
        code: whether a model may bring Python files of its own.

    Raises:
        ValueError: nothing there, no PyTorch model, or one that is not to be trusted.
    """
    previous = os.environ.get(ALLOW_PICKLE)
    os.environ[ALLOW_PICKLE] = "true" if pickle else "false"
    with tempfile.TemporaryDirectory() as folder:  # what was looked at is what is loaded
        try:
            local = Path(mlflow.artifacts.download_artifacts(uri, dst_path=folder))
            _check_trusted(local, pickle=pickle, code=code)
            module: nn.Module = mlflow.pytorch.load_model(str(local))
            return module
        except Exception as error:
            refused = "Deserializing model using pickle is disallowed" in str(error)
            reason = PICKLE_RISK if refused else _reason(error)
            raise ValueError(f"model URI {uri}: cannot be loaded: {reason}") from error
        finally:
            if previous is None:
                del os.environ[ALLOW_PICKLE]
            else:
                os.environ[ALLOW_PICKLE] = previous


def _check_trusted(folder: Path, *, pickle: bool, code: bool) -> None:
    """Whether a model's folder holds an exported graph alone, or what else is trusted."""
    flavors = Model.load(str(folder)).flavors
    if "pytorch" not in flavors:
        pickled = "" if pickle or "python_function" not in flavors else f"; {PICKLE_RISK}"
        raise ValueError(f"expected a PyTorch model, but it has only "
                         f"{', '.join(sorted(flavors)) or 'none'}{pickled}")
    flavor = flavors["pytorch"]
    if flavor.get("code") and not code:
        raise ValueError(CODE_RISK)
    data = (folder / str(flavor.get("model_data"))).resolve()
    if not data.is_relative_to(folder.resolve()):
        raise ValueError("its MLmodel names a place outside the model")
    if not pickle and [file.name for file in data.glob("*.pt*")] != [EXPORTED]:
        raise ValueError(PICKLE_RISK)
    if not code and (data / EXPORTED).is_file() and (foreign := foreign_code(data / EXPORTED)):
        raise ValueError(f"{foreign} in its graph is none that wua knows, and may run its author's "
                         f"code; --trust code loads it all the same")


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
