"""How the widths of tensors go through layers of attention."""

from __future__ import annotations

from edgecompress.distill.students.calls import Call, agree, keep_all
from edgecompress.distill.students.widths import Axes, Width, hold, scaled


def _multi_head(call: Call) -> list[Axes]:
    """Of MultiHeadAttention: there are fewer heads; where there would be less than one, it has smaller keys."""
    layer, config, query = call.operation, call.config(), call.argument(0, "query")
    if not isinstance(query, Axes) or layer._attention_axes not in (None, (1,), [1], 1):  # noqa: SLF001
        return keep_all(call)
    heads = call.widths.own(layer, "num_heads", config["num_heads"])
    _shrink_keys(call, heads, [key for key in ("key_dim", "value_dim") if config[key] is not None])
    width = query.widths[-1]
    given = config["output_shape"]
    if given is not None:
        sizes = [given] if isinstance(given, int) else list(given)
        width = call.widths.of(layer, "output_shape", sizes[-1]) if len(sizes) == 1 else None
        if width is not None:
            call.widths.set(layer, "output_shape", lambda: (width.new,))
    return _attended(call, query, width, heads)


def _grouped_query(call: Call) -> list[Axes]:
    layer, config, query = call.operation, call.config(), call.argument(0, "query")
    if not isinstance(query, Axes):
        return keep_all(call)
    pairs = config["num_key_value_heads"]
    share = config["num_query_heads"] // pairs
    fewer = call.widths.own(layer, "num_key_value_heads", pairs)
    heads = call.widths.own(layer, "num_query_heads", config["num_query_heads"])
    if share > 1:
        call.widths.set(
            layer, "num_query_heads",
            lambda: heads.new if heads.root.held else fewer.new * scaled(heads.size, call.share / fewer.new),
        )  # fmt: skip
    _shrink_keys(call, heads, ["head_dim"])
    return _attended(call, query, query.widths[-1], heads)


def _shrink_keys(call: Call, heads: Width, keys: list[str]) -> None:
    """Has keys do what fewer heads cannot: where less than one head would be left."""
    for key in keys:
        size = call.config()[key]

        def new(size: int = size) -> int:
            return size if heads.root.held else scaled(size, min(1.0, heads.size * call.share))

        call.widths.set(call.operation, key, new)


def _attended(call: Call, query: Axes, width: Width | None, heads: Width) -> list[Axes]:
    for mask in ("attention_mask", "query_mask", "value_mask", "key_mask"):
        hold(getattr(call.kwargs.get(mask), "widths", ()))
    outputs = [call.output({**dict(enumerate(query.widths[:-1])), -1: width})]
    if len(call.shapes) > 1:  # the scores, for each head
        outputs.append(call.output({1: heads}, 1))
    return outputs


def _dot_product(call: Call) -> list[Axes]:
    """Of Attention and AdditiveAttention, which are given [query, value, key]."""
    tensors = call.inputs
    query, value = tensors[0], tensors[1]
    key = tensors[2] if len(tensors) > 2 and len(tensors[2].shape) == len(query.shape) else value  # noqa: PLR2004
    agree(call.widths, [query.widths[-1], key.widths[-1]])
    hold(width for each in tensors for width in each.widths[:-1])
    outputs = [Axes.fixed(shape) for shape in call.shapes]
    outputs[0] = call.output({-1: value.widths[-1]})
    return outputs


RULES = {
    "MultiHeadAttention": _multi_head,
    "GroupedQueryAttention": _grouped_query,
    "Attention": _dot_product,
    "AdditiveAttention": _dot_product,
}
