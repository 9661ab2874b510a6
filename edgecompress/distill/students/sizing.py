"""Works out how wide each layer of a student is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgecompress.distill.students.calls import Call, agree, keep_all
from edgecompress.distill.students.rules import rule_for
from edgecompress.distill.students.views import View
from edgecompress.distill.students.widths import Axes, Widths, hold
from edgecompress.functional import explicit_arguments


class Sizing:
    """The sizes that layers and tensors of a teacher have in a student.

    Attributes:
        narrower: Whether any is smaller than in the teacher.
    """

    def __init__(self, view: View, graph: Any, share: float) -> None:
        self._view = view
        self._share = share
        self._widths = Widths()
        self._tensors: dict[int, Axes] = {}
        self._first: dict[int, list[Axes]] = {}
        outputs = self._walk(graph, [Axes.fixed(tensor.shape) for tensor in graph.inputs])
        for output in outputs:
            hold(output.widths)
        self.narrower = self._widths.solve(share)

    def settings(self, layer: Any) -> dict[str, Any]:
        """Returns what changes in a layer's configuration."""
        return {key: new() for key, new in self._widths.settings.get(id(layer), {}).items()}

    def shape(self, tensor: Any) -> tuple[int | None, ...]:
        """Returns the shape of a tensor of the teacher's graph, also inside nested models, in the student."""
        return self._tensors[id(tensor)].new_shape

    def features(self, layer: Any) -> int | None:
        """Returns the last size of what a layer is given first; None if it is not called or has an unknown size."""
        given = self._first.get(id(layer))
        return given[0].new_shape[-1] if given else None

    def _walk(self, graph: Any, inputs: Sequence[Axes]) -> list[Axes]:
        import keras

        self._tensors.update(zip(map(id, graph.inputs), inputs, strict=True))

        def fill(leaf: Any) -> Any:
            return self._tensors[id(self._view.tensor(leaf))] if isinstance(leaf, keras.KerasTensor) else leaf

        for node in self._view.nodes(graph):
            args, kwargs = keras.tree.map_structure(fill, (node.arguments.args, explicit_arguments(node)))
            outputs = self._call(node.operation, tuple(args), kwargs, [tensor.shape for tensor in node.outputs])
            self._tensors.update(zip(map(id, node.outputs), outputs, strict=True))
        return [fill(tensor) for tensor in graph.outputs]

    def _call(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Sequence[Any]) -> list[Axes]:
        import keras

        call = Call(operation, args, kwargs, tuple(map(tuple, shapes)), self._widths, self._share)
        if getattr(operation, "weights", None):
            self._agree_with_first(operation, call.inputs)
        graph = self._view.graph(operation, call.inputs)
        if graph is not None:
            return self._open(graph, call)
        if isinstance(operation, keras.layers.TimeDistributed):
            return self._each_step(call)
        if isinstance(operation, keras.layers.Wrapper) and not isinstance(operation, keras.layers.Bidirectional):
            return self._call(operation.layer, args, kwargs, shapes)
        if isinstance(operation, keras.layers.Bidirectional):
            for layer in (operation.forward_layer, operation.backward_layer):
                self._agree_with_first(layer, call.inputs)
        return rule_for(operation)(call)

    def _agree_with_first(self, layer: Any, inputs: list[Axes]) -> None:
        """A layer that is called again gets what it got the first time."""
        for first, other in zip(self._first.setdefault(id(layer), inputs), inputs, strict=False):
            if first is not other and len(first.shape) == len(other.shape):
                for pair in zip(first.widths, other.widths, strict=True):
                    agree(self._widths, pair)

    def _open(self, graph: Any, call: Call) -> list[Axes]:
        """Goes through a nested model."""
        given = call.inputs
        names = [tensor.name for tensor in graph.inputs]
        first = call.args[0] if call.args else None
        if isinstance(first, dict) and not isinstance(graph._inputs_struct, dict) and set(names) <= set(first):  # noqa: SLF001
            given = [first[name] for name in names]
        ranks = [len(each.shape) for each in given]
        if ranks != [len(tensor.shape) for tensor in graph.inputs]:
            # Keras adds or removes an axis; or it is given more than its inputs.
            return self._fixed(graph, call)
        inner = []
        for each, tensor in zip(given, graph.inputs, strict=True):
            sizes = enumerate(zip(each.widths, each.shape, tensor.shape, strict=True))
            kept = {axis: width for axis, (width, size, own) in sizes if width is not None and size == own}
            hold(width for axis, width in enumerate(each.widths) if axis not in kept)
            inner.append(Axes.fixed(tensor.shape).having(dict(kept)))
        outputs = self._walk(graph, inner)
        # From outside, sizes may be known that are not known inside.
        return [call.output(dict(enumerate(each.widths)), number) for number, each in enumerate(outputs)]

    def _fixed(self, graph: Any, call: Call) -> list[Axes]:
        outputs = self._walk(graph, [Axes.fixed(tensor.shape) for tensor in graph.inputs])
        for each in outputs:
            hold(each.widths)
        return keep_all(call)

    def _each_step(self, call: Call) -> list[Axes]:
        """Goes through the layer in a TimeDistributed, which does not see the steps."""
        x = call.x
        hold([x.widths[1]])
        inner = self._call(call.operation.layer, (x.without(1),), {}, [shape[:1] + shape[2:] for shape in call.shapes])
        return [
            call.output({axis + (axis > 0): width for axis, width in enumerate(each.widths)}, number)
            for number, each in enumerate(inner)
        ]
