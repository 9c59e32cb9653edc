"""What each operation of torch (ATen) does to the units of the tensors that it takes.

A rule gets the tracer, the operation's arguments and what it returned, and gives the labels of
that: units that are one from here on are tied, those that cannot be cut are frozen. Operations on
each number alone need no rule. Tests: ``tests/pruning/test_axes.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from wua_mlflow.pruning.labels import FREE, Labels, Layout, any_, free, is_free, stacked

if TYPE_CHECKING:
    from wua_mlflow.pruning.tracer import Tracer

__all__ = [
    "FACTORIES", "MADE", "PARTS", "POINTWISE", "REDUCTIONS", "RULES", "VIEWS", "reduced_dims",
    "uses_batch",
]


VIEWS = {"view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze", "squeeze", "flatten",
         "unflatten"}
PARTS = VIEWS | {"expand", "t", "transpose", "permute", "select", "unbind", "slice", "split",
                 "detach", "split_with_sizes", "alias", "clone", "_to_copy", "chunk",
                 "unsafe_split", "contiguous"}
"""What makes a part of a parameter, or turns it."""

FACTORIES = {"zeros", "ones", "full", "empty", "scalar_tensor", "new_zeros", "new_ones",
             "new_empty", "new_full"}

MADE = {"arange", "randn", "rand", "eye", "linspace", "lift_fresh", "lift_fresh_copy",
        "tril_indices", "randperm", "randint"}

POINTWISE = {"clone", "contiguous", "detach", "alias", "_to_copy", "to", "copy", "zeros_like",
             "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "native_dropout",
             "dropout", "bernoulli", "fill", "zero", "_conj", "resolve_conj", "lift", "masked_fill",
             "where", "bucketize", "isin", "celu", "_prelu_kernel", "rrelu", "hardswish",
             "hardsigmoid", "hardtanh", "elu", "softplus", "leaky_relu", "relu6", "mish", "silu",
             "gelu",
             "log_sigmoid_forward", "threshold", "softshrink", "hardshrink", "clamp", "nan_to_num"}
Rule = Callable[["Tracer", Sequence[Any], Mapping[str, Any], Any], Any]
RULES: dict[str, Rule] = {}


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, rule))
        return rule
    return register


def _at(args: Sequence[Any], kwargs: Mapping[str, Any], place: int, name: str, default: Any) -> Any:
    return args[place] if len(args) > place else kwargs.get(name, default)


@_rule(*sorted(VIEWS))
def _view(tracer: Tracer, args: Any, kwargs: Any, outputs: Any) -> Layout:
    layout = tracer.view(tracer.layout(args[0]), args[0].shape, outputs.shape)
    new = outputs.dim() - args[0].dim() + 1
    if new > 1:  # of nn.Unflatten
        first = next((dim for dim, (size, other) in enumerate(zip(
            args[0].shape, outputs.shape, strict=False)) if size != other), 0)
        tracer.note_stated("unflattened_size", *layout[first:first + new])
    return layout


@_rule("t", "transpose", "permute", "movedim", "swapaxes")
def _permute(tracer: Tracer, args: Any, kwargs: Any, outputs: Any) -> Layout:
    dims = list(range(args[0].dim()))
    if len(args) == 1:
        dims.reverse()
    elif len(args) == 2:
        dims = [dim % len(dims) for dim in args[1]]
    else:
        one, other = (dim % len(dims) for dim in args[1:3])
        dims[one], dims[other] = dims[other], dims[one]
    layout = tracer.layout(args[0])
    return tuple(layout[dim] for dim in dims)


@_rule("expand", "expand_as", "broadcast_to")
def _expand(tracer: Tracer, args: Any, kwargs: Any, outputs: Any) -> Layout:
    layout, shape = tracer.layout(args[0]), args[0].shape
    return tuple(
        layout[dim - new] if dim >= new and shape[dim - new] == size else any_(size)
        for new in [outputs.dim() - args[0].dim()] for dim, size in enumerate(outputs.shape))


@_rule("repeat")
def _repeat(tracer: Tracer, args: Any, kwargs: Any, outputs: Any) -> Layout:
    layout, new = tracer.layout(args[0]), outputs.dim() - args[0].dim()
    return tuple(free(size) if dim < new or args[0].shape[dim - new] == 1 else
                 np.tile(layout[dim - new], (size // args[0].shape[dim - new], 1))
                 for dim, size in enumerate(outputs.shape))


def _dims(of: Tensor, dims: Any) -> list[int]:
    if dims is None or (isinstance(dims, (list, tuple)) and not dims):
        return list(range(of.dim()))
    return [dim % of.dim() for dim in ([dims] if isinstance(dims, int) else dims)]


@_rule("slice")
def _sliced(tracer: Tracer, args: Any, kwargs: Any, outputs: Any) -> Layout:
    dim = _at(args, kwargs, 1, "dim", 0) % args[0].dim()
    start, end, step = (_at(args, kwargs, place, name, default) for place, name, default in (
        (2, "start", None), (3, "end", None), (4, "step", 1)))
    layout = list(tracer.layout(args[0]))
    layout[dim] = layout[dim][slice(start, end, step)]
    return tuple(layout)


@_rule("select")
def _selected(tracer: Tracer, args: Any, kwargs: Any, outputs: Any) -> Layout:
    dim = args[1] % args[0].dim()
    layout = list(tracer.layout(args[0]))
    tracer.freeze_if_used(layout.pop(dim), "one of them is picked by its number")
    return tuple(layout)


@_rule("flip")
def _flipped(tracer: Tracer, args: Any, kwargs: Any, outputs: Any) -> Layout:
    dims = _dims(args[0], args[1])
    return tuple(labels[::-1] if dim in dims else labels
                 for dim, labels in enumerate(tracer.layout(args[0])))


@_rule("unbind")
def _unbound(tracer: Tracer, args: Any, kwargs: Any, outputs: Any) -> list[Layout]:
    dim = _at(args, kwargs, 1, "dim", 0) % args[0].dim()
    layout = list(tracer.layout(args[0]))
    tracer.freeze(layout.pop(dim), "they are taken apart one by one")
    return [tuple(layout)] * len(outputs)


@_rule("split", "split_with_sizes", "unsafe_split", "chunk", "unsafe_chunk", "tensor_split",
       "unsafe_split_with_sizes", "split_with_sizes_copy", "split_copy")
def _split(tracer: Tracer, args: Any, kwargs: Any, outputs: Any) -> list[Layout]:
    dim = _at(args, kwargs, 2, "dim", 0) % args[0].dim()
    layout, results, start = tracer.layout(args[0]), [], 0
    for output in outputs:
        size = output.shape[dim]
        results.append((*layout[:dim], layout[dim][start:start + size], *layout[dim + 1:]))
        start += size
    sizes = {output.shape[dim] for output in outputs}
    if len(sizes) == 1 and sizes != {1}:  # equal parts stay equal
        for result in results[1:]:
            if not is_free(result[dim]):
                tracer.tie(results[0][dim], result[dim])
    return results


@_rule("cat", "concatenate")
def _cat(tracer: Tracer, args: Any, kwargs: Any, outputs: Any) -> Layout:
    tensors = [tensor for tensor in args[0] if tensor.dim() == outputs.dim()]
    dim = _at(args, kwargs, 1, "dim", 0) % outputs.dim()
    layouts = [tracer.layout(tensor) for tensor in tensors]
    result: list[Labels] = []
    for each in range(outputs.dim()):
        parts = [layout[each] for layout in layouts]
        if each == dim:
            result.append(stacked(parts))
            continue
        total = parts[0]
        for part in parts[1:]:
            total = tracer.tie(total, part)
        result.append(total)
    return tuple(result)


@_rule("stack")
def _stack(tracer: Tracer, args: Any, kwargs: Any, outputs: Any) -> Layout:
    dim = _at(args, kwargs, 1, "dim", 0) % outputs.dim()
    inputs = list(args[0])
    layout = list(tracer.together([tracer.layout(each) for each in inputs], inputs, inputs[0]))
    layout.insert(dim, free(len(inputs)))
    return tuple(layout)


@_rule("constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad2d", "pad")
def _pad(tracer: Tracer, args: Any, kwargs: Any, outputs: Any) -> Layout:
    layout = list(tracer.layout(args[0]))
    for number in range(0, len(args[1]), 2):
        dim = args[0].dim() - 1 - number // 2
        left, right = args[1][number], args[1][number + 1]
        if left or right:
            labels = layout[dim][max(0, -left):len(layout[dim]) - max(0, -right)]
            layout[dim] = np.pad(labels, ((max(0, left), max(0, right)), (0, 0)),
                                 constant_values=FREE)
    return tuple(layout)


@_rule("mm", "bmm", "addmm", "baddbmm", "mv", "dot", "linear", "addmv", "_addmm_activation")
def _mm(tracer: Tracer, args: Any, kwargs: Any, outputs: Any) -> Layout:
    *bias, one, other = [each for each in args[:3] if isinstance(each, Tensor)]
    left, right = tracer.layout(one), tracer.layout(other)
    tracer.note_read(one, one.dim() - 1)
    tracer.note_read(other, max(other.dim() - 2, 0))
    tracer.product(left[-1], right[-2] if len(right) > 1 else right[-1])
    batch = []
    if one.dim() == 3:
        batch = [tracer.tie(left[0], right[0])]
        tracer.heads.append(np.unique(batch[0][batch[0] >= 0]))
    result = (*batch, *left[-2:-1], *(right[-1:] if len(right) > 1 else ()))
    if bias:
        return tracer.together([result, tracer.layout(bias[0])], [outputs, bias[0]], outputs)
    return result


@_rule("convolution", "_convolution", "cudnn_convolution", "mkldnn_convolution",
       "convolution_overrideable")
def _convolution(tracer: Tracer, args: Any, kwargs: Any, outputs: Any) -> Layout:
    inputs, weight, bias = args[:3]
    transposed, groups = args[6], args[8]
    x, w = tracer.layout(inputs), tracer.layout(weight)
    for labels in (*x[2:], *w[2:]):
        tracer.freeze(labels, "they lie along places of a convolution")
    channels, makes = x[1], w[1 if transposed else 0]
    reads = w[0 if transposed else 1]
    if groups == 1 or not transposed or inputs.shape[1] > groups:
        tracer.note_read(weight, 0 if transposed else 1)
    if groups == 1:
        tracer.product(channels, reads)
    else:
        makes = _grouped(tracer, channels, w, groups, transposed)
    if isinstance(bias, Tensor):
        makes = tracer.tie(makes, tracer.layout(bias)[0])
    return (x[0], makes, *(free(size) for size in outputs.shape[2:]))


def _grouped(
    tracer: Tracer, channels: Labels, weight: Layout, groups: int, transposed: bool
) -> Labels:
    """What a grouped convolution makes: whole groups go, or the same places of each."""
    total = len(channels)
    of_inputs = tracer.view((channels,), (total,), (groups, total // groups)) \
        if total > groups else (channels, free(1))
    if transposed:
        reads = tracer.view((weight[0],), (total,), (groups, total // groups)) \
            if total > groups else (weight[0], free(1))
        group = tracer.tie(of_inputs[0], reads[0])
        if total > groups:
            tracer.product(of_inputs[1], reads[1])
        return tracer.view((group, weight[1]), (groups, len(weight[1])),
                           (groups * len(weight[1]),))[0]
    each = len(weight[0]) // groups
    makes = tracer.view((weight[0],), (groups * each,), (groups, each)) if each > 1 else \
        (weight[0], free(1))
    tracer.tie(of_inputs[0], makes[0])
    if total > groups:
        tracer.product(of_inputs[1], weight[1])
    return weight[0]


@_rule("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
       "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
       "_scaled_dot_product_attention_math")
def _attention(tracer: Tracer, args: Any, kwargs: Any, outputs: Any) -> list[Layout | None]:
    q, k, v = (tracer.layout(each) for each in args[:3])
    shared = len(q[1]) // len(k[1])  # by so many heads of the queries (grouped-query attention)
    heads = tracer.tie(q[1], tracer.tie(*(np.repeat(each[1], shared, 0) for each in (k, v))))
    tracer.heads.append(np.unique(heads[heads >= 0]))
    tracer.product(q[3], k[3])
    mask = kwargs.get("attn_mask")
    if isinstance(mask, Tensor) and mask.dim() == 4 and mask.shape[1] == len(heads) > 1:
        tracer.tie(heads, tracer.layout(mask)[1])
    return [(q[0], heads, q[2], v[3])]


@_rule("native_layer_norm", "layer_norm", "rms_norm", "_fused_rms_norm")
def _layer_norm(tracer: Tracer, args: Any, kwargs: Any, outputs: Any) -> list[Layout | None]:
    layout, count = list(tracer.layout(args[0])), len(args[1])
    weights = [weight for weight in args[2:4] if isinstance(weight, Tensor)]
    for place in range(1, count + 1):
        labels = layout[-place]
        for weight in weights:
            labels = tracer.tie(labels, tracer.layout(weight)[-place])
        if not weights and count == 1:
            tracer.note_stated("normalized_shape", labels)
        layout[-place] = labels
        tracer.note_reduced(labels)
    return [tuple(layout)]


@_rule("native_group_norm", "group_norm")
def _group_norm(tracer: Tracer, args: Any, kwargs: Any, outputs: Any) -> list[Layout | None]:
    layout, groups = list(tracer.layout(args[0])), args[6]
    labels = layout[1]
    weights = [weight for weight in args[1:3] if isinstance(weight, Tensor)]
    for weight in weights:
        labels = tracer.tie(labels, tracer.layout(weight)[0])
    if not weights:
        tracer.note_stated("num_channels", labels)
    layout[1] = labels
    for each in layout[2:]:
        tracer.freeze(each, "they lie along places that a norm goes over")
    if 1 < groups < len(labels):
        within = tracer.view((labels,), (len(labels),), (groups, len(labels) // groups))[1]
        tracer.note_reduced(within)
    elif groups == 1:
        tracer.note_reduced(labels)
    return [tuple(layout)]


def uses_batch(args: Sequence[Any]) -> bool:
    """Whether a batch norm goes over its input's places, not by statistics that it was given."""
    return next((each for each in args if isinstance(each, bool)), False)


@_rule("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
       "cudnn_batch_norm", "batch_norm", "miopen_batch_norm", "_batch_norm_no_update",
       "_batch_norm_with_update")
def _batch_norm(tracer: Tracer, args: Any, kwargs: Any, outputs: Any) -> list[Layout | None]:
    layout = list(tracer.layout(args[0]))
    if uses_batch(args):
        for labels in layout[2:]:
            tracer.note_reduced(labels)
    weights = [weight for weight in args[1:5] if isinstance(weight, Tensor)]
    for weight in weights:
        layout[1] = tracer.tie(layout[1], tracer.layout(weight)[0])
    if not weights:
        tracer.note_stated("num_features", layout[1])
    return [tuple(layout)]


@_rule("_trilinear")
def _bilinear(tracer: Tracer, args: Any, kwargs: Any, outputs: Any) -> Layout:
    """As ``nn.Bilinear`` calls it: a weight of shape (units, inputs of one, inputs of other)."""
    one, weight, other = (tracer.layout(each) for each in args[:3])
    tracer.note_read(args[1], 1)
    tracer.note_read(args[1], 2)
    tracer.product(one[-1], weight[1])
    tracer.product(other[-1], weight[2])
    return (*tracer.together([one[:-1], other[:-1]], [args[0][..., 0], args[2][..., 0]],
                             outputs[..., 0]), weight[0])


REDUCTIONS = ("sum", "mean", "var", "std", "var_mean", "std_mean", "amax", "amin", "norm", "prod",
              "nansum", "linalg_vector_norm", "logsumexp", "any", "all", "nanmean")
"""Operations that go over one or several dimensions."""
def reduced_dims(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[int]:
    """Which dimensions of its first argument one of ``REDUCTIONS`` goes over."""
    place = 2 if name.rstrip("_") in ("norm", "linalg_vector_norm") else 1
    return _dims(args[0], _at(args, kwargs, place, "dim", None))


def _reduction(name: str, tracer: Tracer, args: Any, kwargs: Any, outputs: Any) -> Any:
    dims = reduced_dims(name, args, kwargs)
    first = outputs if isinstance(outputs, Tensor) else outputs[0]
    layout, result = tracer.layout(args[0]), []
    for dim, labels in enumerate(layout):
        if dim in dims:
            tracer.note_reduced(labels)
            if first.dim() == args[0].dim():
                result.append(free(1))
        else:
            result.append(labels)
    found = tuple(result) if len(result) == first.dim() else None
    return found if isinstance(outputs, Tensor) else [found] * len(outputs)


RULES.update({name: partial(_reduction, name) for name in REDUCTIONS})


@_rule("_softmax", "softmax", "_log_softmax", "log_softmax", "cumsum", "cumprod", "_safe_softmax",
       "sort", "tril", "triu")
def _along_one(tracer: Tracer, args: Any, kwargs: Any, outputs: Any) -> Any:
    """Along one dimension positions depend on each other; the others pass."""
    dim = args[1] if len(args) > 1 and isinstance(args[1], int) else -1
    layout = list(tracer.layout(args[0]))
    dim %= len(layout)
    tracer.freeze(layout[dim], "what is done with them depends on how many there are")
    layout[dim] = free(layout[dim].shape[0])
    same = isinstance(outputs, Tensor) and outputs.shape == args[0].shape
    return tuple(layout) if same else None




@_rule("roll")
def _rolled(tracer: Tracer, args: Any, kwargs: Any, outputs: Any) -> Layout:
    dims = _dims(args[0], _at(args, kwargs, 2, "dims", None))
    layout = tracer.layout(args[0])
    for dim in dims:
        tracer.freeze(layout[dim], "they are shifted along")
    return tuple(free(len(labels)) if dim in dims else labels
                 for dim, labels in enumerate(layout))


@_rule("as_strided")
def _strided(tracer: Tracer, args: Any, kwargs: Any, outputs: Any) -> Layout | None:
    """The same tensor with other strides for its dimensions of size one, or anything."""
    if args[0].shape == outputs.shape:
        return tracer.layout(args[0])
    for labels in tracer.layout(args[0]):
        tracer.freeze(labels, "what as_strided does with them is not known")
    return None


@_rule("_grouped_mm")
def _grouped_mm(tracer: Tracer, args: Any, kwargs: Any, outputs: Any) -> Layout | None:
    """Rows, by whose expert they are, times matrices of shape (experts, inputs, outputs)."""
    rows, matrices = tracer.layout(args[0]), tracer.layout(args[1])
    if (args[0].dim(), args[1].dim()) != (2, 3):
        for labels in (*rows, *matrices):
            tracer.freeze(labels, "what _grouped_mm does with them is not known")
        return None
    tracer.note_read(args[1], 1)
    tracer.product(rows[1], matrices[1])
    tracer.freeze(matrices[0], "they are looked up by number")
    return (rows[0], matrices[2])


@_rule("glu")
def _glu(tracer: Tracer, args: Any, kwargs: Any, outputs: Any) -> Layout:
    dim = _at(args, kwargs, 1, "dim", -1) % args[0].dim()
    layout = tracer.layout(args[0])
    half = len(layout[dim]) // 2
    tied = tracer.tie(layout[dim][:half], layout[dim][half:])
    return (*layout[:dim], tied, *layout[dim + 1:])


def _spatial(tracer: Tracer, args: Any, kwargs: Any, outputs: Any) -> Any:
    """Batch and channels pass; places are pooled, resized or shifted."""
    first = outputs if isinstance(outputs, Tensor) else outputs[0]
    layout, count = tracer.layout(args[0]), 1 if first.dim() == 2 else 2
    count = max(first.dim() - 2, 0) and 2 if first.dim() > 3 else max(first.dim() - 1, 1)
    for labels in layout[count:]:
        tracer.freeze(labels, "they lie along places that are pooled or resized")
    result = (*layout[:count], *(free(size) for size in first.shape[count:]))
    return result if isinstance(outputs, Tensor) else [result] * len(outputs)


RULES.update(dict.fromkeys((
    "max_pool2d_with_indices", "max_pool1d", "max_pool2d", "max_pool3d_with_indices", "avg_pool1d",
    "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_max_pool2d", "mkldnn_max_pool2d", "upsample_nearest1d",
    "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_linear1d",
    "_upsample_nearest_exact2d", "upsample_trilinear3d", "_upsample_bilinear2d_aa", "im2col",
    "max_pool1d_with_indices", "adaptive_max_pool1d", "upsample_nearest3d"), _spatial))
@_rule("pixel_shuffle")
def _pixel_shuffle(tracer: Tracer, args: Any, kwargs: Any, outputs: Any) -> Layout:
    layout, factor = tracer.layout(args[0]), args[1]
    channels = len(layout[1])
    parts = tracer.view((layout[1],), (channels,), (channels // factor**2, factor**2))
    tracer.freeze(parts[1], "they become places of a picture")
    return (layout[0], parts[0], *(free(size) for size in outputs.shape[2:]))


@_rule("pixel_unshuffle")
def _pixel_unshuffle(tracer: Tracer, args: Any, kwargs: Any, outputs: Any) -> Layout:
    layout, factor = tracer.layout(args[0]), args[1]
    return (layout[0], np.repeat(layout[1], factor**2, 0),
            *(free(size) for size in outputs.shape[2:]))


@_rule("channel_shuffle", "native_channel_shuffle")
def _channel_shuffle(tracer: Tracer, args: Any, kwargs: Any, outputs: Any) -> Layout:
    """The same share of each group: their number is the operation's own."""
    layout, groups = tracer.layout(args[0]), args[1]
    channels = len(layout[1])
    group, place = tracer.view((layout[1],), (channels,), (groups, channels // groups))
    tracer.freeze(group, "the channels of that many groups are shuffled")
    shuffled = tracer.view((place, group), (channels // groups, groups), (channels,))[0]
    return (layout[0], shuffled, *layout[2:])


@_rule("_cdist_forward", "cdist", "_euclidean_dist")
def _distances(tracer: Tracer, args: Any, kwargs: Any, outputs: Any) -> Layout:
    one, other = tracer.layout(args[0]), tracer.layout(args[1])
    for labels in (one[-1], other[-1]):
        tracer.freeze(labels, "distances go over all of them")
    return (*one[:-1], other[-2])


@_rule("embedding")
def _embedding(tracer: Tracer, args: Any, kwargs: Any, outputs: Any) -> Layout:
    table = tracer.layout(args[0])
    tracer.freeze(table[0], "they are looked up by number")
    return (*tracer.layout(args[1]), table[1])


@_rule("index", "_unsafe_index")
def _index(tracer: Tracer, args: Any, kwargs: Any, outputs: Any) -> Layout | None:
    layout, indices = tracer.layout(args[0]), list(args[1])
    picked = [dim for dim, index in enumerate(indices) if isinstance(index, Tensor)]
    for dim in picked:
        tracer.freeze(layout[dim], "they are looked up by number")
    if not picked or picked != list(range(picked[0], picked[-1] + 1)) or any(
            indices[dim].dtype == torch.bool for dim in picked):
        for labels in layout:
            tracer.freeze(labels, "they are picked by a condition")
        return None
    places = outputs.dim() - (args[0].dim() - len(picked))
    return (*layout[:picked[0]], *(free(size) for size in
                                   outputs.shape[picked[0]:picked[0] + places]),
            *layout[picked[-1] + 1:])


@_rule("index_add", "scatter_add", "index_copy", "scatter", "scatter_reduce", "index_reduce")
def _added_at(tracer: Tracer, args: Any, kwargs: Any, outputs: Any) -> Layout:
    """Rows of one tensor are put or added into another's, at places that are looked up."""
    dim, layout = args[1] % args[0].dim(), list(tracer.layout(args[0]))
    source = args[3] if len(args) > 3 else None
    if isinstance(source, Tensor) and source.dim() == len(layout):
        for each, labels in enumerate(tracer.layout(source)):
            if each == dim:
                tracer.freeze(labels, "they are looked up by number")
            elif len(labels) == len(layout[each]):
                layout[each] = tracer.tie(layout[each], labels)
    tracer.freeze(layout[dim], "they are looked up by number")
    return tuple(layout)


@_rule("index_select", "gather")
def _gather(tracer: Tracer, args: Any, kwargs: Any, outputs: Any) -> Layout:
    dim = args[1] % args[0].dim()
    layout = list(tracer.layout(args[0]))
    tracer.freeze(layout[dim], "they are looked up by number")
    layout[dim] = free(outputs.shape[dim])
    return tuple(labels if len(labels) == size else free(size)
                 for labels, size in zip(layout, outputs.shape, strict=True))
