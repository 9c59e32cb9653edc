"""A logged PyTorch model that is analysed: what MLflow knows of it, its network, data for it.

Tests: ``tests/pipeline/test_logged_models.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlflow.exceptions import MlflowException
from torch import nn

from wua_mlflow.config import Settings
from wua_mlflow.data.datasets import is_file
from wua_mlflow.data.loaders import AnalysisData, load_analysis_data
from wua_mlflow.data.tables import read_rows
from wua_mlflow.errors import printable
from wua_mlflow.hooks import take_by_place
from wua_mlflow.pipeline.compare_external import source_run
from wua_mlflow.pipeline.evaluation_sets import file_evaluation_set
from wua_mlflow.pipeline.pyfunc_models import check_batch, flavour_of, model_info
from wua_mlflow.pipeline.trust import Trust
from wua_mlflow.pipeline.variant import ModelVariant
from wua_mlflow.tracking.models import load_exported
from wua_mlflow.tracking.store import Store

__all__ = ["LoggedModel", "LoggedSource", "logged_source"]


@dataclass(frozen=True)
class LoggedSource:
    """A logged PyTorch model, by its URI.

    Attributes:
        uri: as it was given.
        model_id: of the LoggedModel, where it is one.
        variant_run: the variant's run that logged it, if it was one of ours.
    """

    uri: str
    model_id: str | None
    variant_run: str | None

    def load(self, trust: Trust) -> nn.Module:
        """The exported graph, or a pickled module where that is trusted.

        Raises:
            ValueError: one line; it is not trusted, or takes one row at a time.
        """
        module = load_exported(self.uri, pickle=trust.pickle, code=trust.code)
        check_batch(module, self.uri)
        take_by_place(module)
        return module


def logged_source(store: Store, uri: str) -> LoggedSource:
    """What MLflow knows of the model behind ``uri``; nothing of it is loaded.

    Raises:
        ValueError: one line; there is none, or it is none of PyTorch's.
    """
    try:
        info = model_info(uri)
    except MlflowException as error:
        raise ValueError(f"run_id: expected a model's URI, such as models:/name/1, but {uri} "
                         f"cannot be had: {printable(error.message)}") from error
    flavour = flavour_of(info)
    if flavour != "pytorch":
        raise ValueError(f"run_id: expected a PyTorch model, whose weights can be analysed, but "
                         f"{uri} is one of MLflow's flavour {flavour}; its answers can be "
                         f"compared: wua compare A B")
    return LoggedSource(uri, info.model_id, source_run(store, uri))


@dataclass(frozen=True, eq=False)
class LoggedModel:
    """A logged model that is to be analysed on data that were named.

    Attributes:
        source: its URI, and where it came from.
        trust: what of it may run.
        variant: the variant of ours that it was logged by, if it was: its network is analysed,
            which is what the logged graph computes.
    """

    source: LoggedSource
    trust: Trust
    variant: ModelVariant | None = None

    def module(self) -> nn.Module:
        """The network."""
        return self.variant.model if self.variant else self.source.load(self.trust)

    def feed(self, settings: Settings, to_inputs: Callable[[Any], Any] | None) -> AnalysisData:
        """The data that the settings name, in the form that the network takes.

        Raises:
            ValueError: one line; there are no such data, or they are not for this model.
        """
        if self.variant is None:  # as ``state``: data are not standardised
            return load_analysis_data(settings.model_copy(update={
                "model": self.source.uri, "state": self.source.uri}), to_inputs)
        split = self.variant.recipe.split
        if not is_file(settings.data):
            raise ValueError(f"data: expected a file, since {self.source.uri} was logged by a run "
                             f"of wua, which knows how its rows become what the network takes, but "
                             f"got {settings.data!r}; without --data its own training part is "
                             f"taken")
        rows = read_rows(settings.data, settings.target, settings=settings.table_settings,
                         like=[split.encoding] if split.encoding else ())
        data: AnalysisData = file_evaluation_set(
            rows, settings.data, settings.task, split).part.dataset
        return data
