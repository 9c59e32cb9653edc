"""The contract: every name that is written to MLflow, for the writer and the reader alike.

A dashboard or a query outside this project relies on these strings; change one and you break it.
Imports the standard library only. Round trip held by ``tests/tracking/test_names.py``.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping
from itertools import count

__all__ = [
    "ArtifactPath", "KINDS", "Kind", "Metric", "Outcome", "Tag", "Variant", "further_layers_table",
    "importance_plot", "keys_of", "layer_metric", "logged_model_name", "long_value", "looks_tag",
    "step_tag",
]


class Kind:
    """Values of the tag ``wua.kind``: what a run is."""

    PIPELINE = "pipeline"
    VARIANT = "variant"
    STEP = "step"
    SWEEP = "sweep"
    TRIAL = "trial"


KINDS = (Kind.PIPELINE, Kind.VARIANT, Kind.STEP, Kind.SWEEP, Kind.TRIAL)


class Variant:
    """Values of the tag ``wua.variant``: which model a variant's run holds."""

    OVERSIZED = "oversized"
    SLIM = "slim"
    SAME_BUDGET = "oversized-same-budget"
    FROM_SCRATCH = "from-scratch"
    """The slim widths trained from scratch, beside a network that was cut (Liu et al. 2019)."""


class Outcome:
    """Values of the verdict tags."""

    NON_INFERIOR = "non_inferior"
    INFERIOR = "inferior"
    INCONCLUSIVE = "inconclusive"


class Tag:
    """Names of run tags."""

    KIND = "wua.kind"
    VARIANT = "wua.variant"
    PIPELINE = "wua.pipeline"
    BASELINE = "wua.baseline"
    VERDICT = "wua.verdict"
    VERDICT_ARTIFACT = "wua.verdict.artifact"
    VERDICT_RECIPE = "wua.verdict.recipe"
    VERDICT_METHOD = "wua.verdict.method"
    """How the interval of ``wua.verdict`` was made; verdicts of two methods do not compare."""
    VERDICT_SEEDS = "wua.verdict.seeds"
    """The slim one's seeds in the recipe verdict, and how many were not planned:
    ``12, 7 beyond the plan``."""
    SCORE = "wua.score"
    """On a variant: what it is judged by: ``accuracy``, ``r2``, ``f1``, …"""
    SENTENCE = "wua.verdict.sentence"
    """On a version in the registry: its artifact verdict as a sentence."""
    COMPARISON = "wua.comparison"
    """On a version in the registry: the run that holds the verdict. Ours are those that have it."""
    ERROR = "wua.error"
    VERSION = "wua.version"
    NULL_KIND = "wua.null_kind"
    TARGET_RUN = "wua.target_run"
    """On a step's own run: the variant that it added to."""
    FLOP_CONVENTION = "wua.flop_convention"
    TASK = "wua.task"
    """``binary``, ``multiclass`` or ``regression``."""
    WIDTHS = "wua.widths"
    """On a variant: its hidden widths, e.g. ``64,32``; a project's run may lack them as a param."""
    CRITERION = "wua.criterion"
    """What made a weight important in the usage figures that the variant holds."""
    CONFIDENCE = "wua.confidence"
    """Of the intervals that the variant holds."""
    EPOCHS_TRAINED = "wua.epochs_trained"
    """Fewer than the budget where training stopped early."""
    TEST_DIGEST = "wua.test_digest"
    """On a variant: digest of the test part, by which looks are counted."""
    LOOKED = "wua.looked"
    """On a slim variant: the margins and confidences of all its verdicts; each is a look."""
    STRUCTURE = "wua.structure"
    """On a variant that was cut: how many units stay, by group, e.g. ``fc1 40``."""
    FOLDED = "wua.folded"
    """On a variant that was cut: ``true`` where what read the units that went reads the others for
    them, by a linear fit, else ``false``; ``, chosen`` after it where both ways were trained."""
    CONTROLS = "wua.controls"
    """On a slim variant: the runs of what was trained beside it."""
    ADOPTED = "wua.adopted"
    """On an original that was trained elsewhere: where its weights came from."""
    TAKES_RAW_ROWS = "wua.takes_raw_rows"
    """In a saved model's metadata, ``true``: it scales rows by itself, as its data were."""
    UNEXPORTED = "wua.unexported"
    """On a variant that torch.export refused: why; its weights and its structure are kept."""
    RESULT = "wua.result"
    """On a pipeline: the run of its result, the last slim variant that is as good."""
    REGISTERED = "wua.registered"
    """On a pipeline and its result: the name and version it was registered as, or why not."""


class Metric:
    """Names of run metrics; each is logged once, at step 0, unless said."""

    SCORE_TRAIN = "score/train"
    SCORE_VALIDATION = "score/validation"
    SCORE_TEST = "score/test"
    SCORE_TEST_MEAN = "score/test_mean"
    SCORE_TEST_STD = "score/test_std"
    """Over seeds, of a score that was set."""
    SCORE_TEST_BY_SEED = "score/test_by_seed"
    """A point a seed: the step is the seed's number, 1 the run's own model."""
    ACCURACY_TRAIN = "accuracy/train"
    ACCURACY_VALIDATION = "accuracy/validation"
    ACCURACY_TEST = "accuracy/test"
    ACCURACY_TEST_MEAN = "accuracy/test_mean"
    ACCURACY_TEST_STD = "accuracy/test_std"
    LOSS_TRAIN = "loss/train"
    """A point an epoch."""
    LOSS_VALIDATION = "loss/validation"
    """A point an epoch, where the validation part is watched."""
    LOSS_TEST = "loss/test"

    TRAINING_SECONDS = "training/seconds"
    """Wall clock of training, that of the network it was cut from included."""

    FLOPS_FORWARD = "flops/forward"
    FLOPS_INFERENCE = "flops/inference"
    FLOPS_TRAINING = "flops/training"
    FLOPS_PTFLOPS_INFERENCE = "flops_ptflops/inference"
    FLOPS_PTFLOPS_TRAINING = "flops_ptflops/training"
    PARAMS_TOTAL = "params/total"
    PARAMS_ANALYZED = "params/analyzed"
    SIZE_BYTES = "size/bytes"

    USAGE_EFFECTIVE_WEIGHTS = "usage/effective_weights"
    USAGE_ENTROPY = "usage/entropy"
    USAGE_EFFECTIVE_SHARE = "usage/effective_share"
    USAGE_NULL_SHARE = "usage/null_share"
    USAGE_NULL_LOW = "usage/null_low"
    USAGE_NULL_HIGH = "usage/null_high"
    USAGE_SHIFT = "usage/shift"
    USAGE_TOP90_SHARE = "usage/top90_share"
    USAGE_LOW_SHARE = "usage/low_share"
    USAGE_DEAD_UNITS = "usage/dead_units"
    """Summed over the layers whose outputs were seen; where training was watched, a point each."""
    USAGE_EFFECTIVE_RANK = "usage/effective_rank"
    """Summed over the layers in which it was measured; likewise."""

    LATENCY_P50 = "latency/p50_ms"
    LATENCY_P95 = "latency/p95_ms"
    LATENCY_THROUGHPUT = "latency/samples_per_s"

    ARTIFACT_DELTA = "compare/artifact_delta"
    ARTIFACT_LOW = "compare/artifact_delta_low"
    ARTIFACT_HIGH = "compare/artifact_delta_high"
    RECIPE_DELTA = "compare/recipe_delta"
    RECIPE_LOW = "compare/recipe_delta_low"
    RECIPE_HIGH = "compare/recipe_delta_high"
    MARGIN = "compare/margin"
    FLOPS_RATIO = "compare/flops_ratio"
    PARAMS_RATIO = "compare/params_ratio"
    SIZE_RATIO = "compare/size_ratio"
    LATENCY_RATIO = "compare/latency_ratio"
    LATENCY_RATIO_LOW = "compare/latency_ratio_low"
    LATENCY_RATIO_HIGH = "compare/latency_ratio_high"
    TRAINING_TIME_RATIO = "compare/training_time_ratio"
    CHURN = "compare/churn"
    WORST_CLASS_DELTA = "compare/worst_class_delta"
    LOOKS = "compare/looks"


class ArtifactPath:
    """Paths of artifacts within a run."""

    LAYERS_TABLE = "usage/layers.json"
    CONFIG = "config.yaml"
    REPLICATES = "replicates.json"
    STATE = "state/model.safetensors"
    STRUCTURE = "state/structure.json"
    SCALING = "state/scaling.json"
    ENCODING = "state/encoding.json"
    """Of a table: how its columns become what the saved model takes, and what its answers are."""
    RNG_STATE = "state/rng.safetensors"
    PREDICTIONS = "evaluation/test.safetensors"
    NETWORK_PLOT = "plots/network.png"
    LAYERS_PLOT = "plots/layers.png"
    UNITS_PLOT = "plots/units.png"
    COMPARISON_PLOT = "plots/comparison.png"
    PARETO_PAGE = "plots/pareto.html"
    TRIALS_PAGE = "plots/trials.html"
    LAYERS_PAGE = "plots/layers.html"
    """To explore in a browser: score against FLOPs, a search's trials, layers of a deep model."""
    WIDTHS = "widths.json"
    REPORT_MARKDOWN = "report.md"
    REPORT_HTML = "report.html"


def importance_plot(layer: str, keys: Mapping[str, str] | None = None) -> str:
    """Path of the importance histogram of ``layer``; ``keys`` as ``keys_of`` its model's layers."""
    return f"plots/importance_{_key(layer, keys)}.png"


def further_layers_table(criterion: str, keys: Mapping[str, str] | None = None) -> str:
    """Path of the table of layers under a criterion that is not the first one asked for.

    >>> further_layers_table("wanda")
    'usage/layers_wanda.json'
    """
    return f"usage/layers_{_key(criterion, keys)}.json"


def layer_metric(layer: str, what: str, keys: Mapping[str, str] | None = None) -> str:
    """Name of a per-layer metric; ``what`` is e.g. ``entropy`` or ``effective_weights``.

    What MLflow allows in no name becomes ``_``; a model that is one layer is called ``model``.

    >>> layer_metric("encoder.fc1", "units"), layer_metric("", "units")
    ('layers/encoder.fc1/units', 'layers/model/units')
    """
    return f"layers/{_key(layer, keys)}/{what}"


def keys_of(layers: Iterable[str]) -> dict[str, str]:
    """What names of metrics and files call each of a model's layers; no two are called the same.

    A name that would be too long, or would be another's but for case or for what MLflow allows in
    no name, ends in a digest of the whole. ``usage/layers.json`` has layers and keys side by side.

    Args:
        layers: all names that lie in one run side by side, each once.

    >>> keys_of(["fc1", "a/b"])
    {'fc1': 'fc1', 'a/b': 'a_b'}
    >>> sorted(keys_of(["FC1", "fc1"]).values())
    ['FC1-46bba7591ddcfce7', 'fc1-cb107ef919596a96']
    """
    plain = {layer: _allowed(layer) for layer in layers}
    holders: dict[str, int] = {}
    for key in plain.values():
        holders[_folded(key)] = holders.get(_folded(key), 0) + 1
    keys = {layer: key for layer, key in plain.items()
            if holders[_folded(key)] == 1 and len(key.encode()) <= LONGEST_KEY}
    taken = set(map(_folded, keys.values()))
    for layer in sorted(plain.keys() - keys.keys()):
        key = next(key for number in count() if _folded(key := _cut(layer, number)) not in taken)
        keys[layer] = key
        taken.add(_folded(key))
    return {layer: keys[layer] for layer in plain}


def logged_model_name(variant: str, widths: Iterable[int]) -> str:
    """What the LoggedModel of a variant is called; MLflow allows no ``/ : . %`` and no quotes.

    >>> logged_model_name("slim-2", [4, 3]), logged_model_name("oversized", [])
    ('slim-2-4-3', 'oversized')
    """
    name = "-".join(map(str, (variant, *widths)))
    return name if len(name) <= LONGEST_KEY else _cut(name, 0)


def long_value(kind: str, key: str) -> str:
    """Path of the file with the whole of a ``param`` or a ``tag`` that is too long for MLflow.

    >>> long_value("tag", "wua.structure")
    'long/tag_wua.structure.txt'
    """
    return f"long/{kind}_{_key(key, None)}.txt"


def looks_tag(digest: str) -> str:
    """Name of the experiment's tag that holds looks at a test set by ``wua compare A B``."""
    return f"wua.looks.{digest[:16]}"


def step_tag(step: str) -> str:
    """Name of the tag that holds the state of ``step``: ``running``, ``done`` or ``failed``."""
    return f"wua.step.{step}"


LONGEST_KEY = 200
"""Bytes: MLflow's names have at most 250 characters, files' names at most 255 bytes."""


def _key(layer: str, keys: Mapping[str, str] | None) -> str:
    return (keys or keys_of([layer]))[layer]


def _cut(layer: str, number: int) -> str:
    """The beginning of a name, and a digest of all of it; another one for each ``number``."""
    named = f"{layer}\0{number}" if number else layer
    digest = hashlib.sha256(named.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    room = LONGEST_KEY - len(digest) - 1
    beginning = _allowed(layer).encode()[:room].decode("utf-8", "ignore")
    return f"{beginning}-{digest}"


def _folded(key: str) -> str:
    """Equal for keys that some file system or database takes for the same."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", key).casefold())


def _allowed(layer: str) -> str:
    key = re.sub(r"[^\w.\- ]", "_", layer)
    return re.sub(r"^\.{1,2}$|^ | $", "_", key) or "model"
