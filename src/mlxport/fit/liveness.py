"""The most memory that evaluating a graph holds at once, as MLX's own evaluation allocates and frees.

Peak memory is no sum of sizes: buffers are shared by views, given on to results ("donated"), freed when their last
reader is done, and MLX hands work to the device ahead of its completion, so that what is freed is freed late. All of
that is followed here, on shapes alone. Sources: mlx/transforms.cpp, mlx/backend/cpu/eval.cpp and
mlx/backend/metal/eval.cpp of MLX 0.32.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection
from dataclasses import dataclass, field
from math import prod

from mlxport.fit.recorded_graph import Graph, Node

__all__ = ["CPU", "METAL", "VIEWS", "Backend", "peak_bytes"]

VIEWS = frozenset({"Reshape", "Flatten", "Unflatten", "Squeeze", "ExpandDims", "Transpose", "Broadcast", "Slice",
                    "AsStrided", "Split", "StopGradient", "View"})  # fmt: skip
# Their results take over the buffer of an input that nothing else needs. The others always allocate.
_DONATING = frozenset({"Abs", "Add", "ArcTan", "AsType", "Ceil", "Cos", "Divide", "Erf", "Exp", "Expm1", "Floor",
                       "LayerNorm", "Log", "Log1p", "LogicalAnd", "LogicalNot", "LogicalOr", "Maximum", "Minimum",
                       "Multiply", "Negative", "Power", "RMSNorm", "Remainder", "RoPE", "Round", "Rsqrt", "Scan",
                       "Select", "Sigmoid", "Sign", "Sin", "SliceUpdate", "Softmax", "Sqrt", "Square", "Subtract",
                       "Tanh"})  # fmt: skip


@dataclass(frozen=True)
class Backend:
    """How far MLX runs ahead of a device: a batch of work is freed when it is done, and some batches are under way.

    Attributes:
        name: ``cpu`` or ``metal``.
        batch_dispatches: Dispatches that a batch has at the least.
        view_dispatches: Dispatches of an operation that only makes a view.
        other_dispatches: Dispatches of any other.
        batch_elements: A batch also ends when the arrays that it reads and writes, each counted once, have this many
            elements; 0 is no limit.
        batches: Batches under way before MLX waits for the oldest.
        fused: Whether ``mx.fast`` has kernels of its own, where the CPU composes them of simpler operations.
    """

    name: str
    batch_dispatches: int
    view_dispatches: int
    other_dispatches: int
    batch_elements: int
    batches: int
    fused: bool


# A task of the CPU's stream is ten dispatches (DISPATCHES_PER_TASK), one to compute and one to let go of the inputs; at
# most ten tasks are under way (MAX_ACTIVE_TASKS). Nine agrees best with `mx.get_peak_memory`: one is nearly done.
CPU = Backend("cpu", 10, 1, 2, batch_elements=0, batches=9, fused=False)
# Command buffers of the larger GPUs, which end beyond 50 dispatches or 50 Mi elements (mlx/backend/metal/device.cpp).
# MLX waits once more than ten of them are under way, and what the oldest holds is let go of only after it has said that
# it is done. With that, published runs take what is said: tests/fit/test_published_runs.py.
METAL = Backend("metal", 51, 0, 1, batch_elements=51 << 20, batches=11, fused=True)


@dataclass
class _Heap:
    """Buffers by number, and who still needs each."""

    sizes: dict[int, int] = field(default_factory=dict)
    owners: Counter[int] = field(default_factory=Counter)  # arrays of the graph that are not yet done with
    readers: Counter[int] = field(default_factory=Counter)  # operations under way
    used: int = 0
    peak: int = 0
    made: int = 0

    def allocate(self, nbytes: int) -> int:
        self.made += 1
        self.sizes[self.made] = nbytes
        self.used += nbytes
        self.peak = max(self.peak, self.used)
        return self.made

    def release(self, buffer: int) -> None:
        if buffer in self.sizes and self.owners[buffer] <= 0 and self.readers[buffer] <= 0:
            self.used -= self.sizes.pop(buffer)


class _Evaluation:
    """One evaluation of a graph, operation by operation."""

    def __init__(self, graph: Graph, backend: Backend, resident: Collection[str]) -> None:
        self.graph, self.backend, self.heap = graph, backend, _Heap()
        self.uses = Counter(key for node in graph.nodes for key in node.inputs) + Counter(graph.outputs)
        self.buffers: dict[str, int] = {}
        self.dense = dict.fromkeys((*graph.inputs, *graph.constants), True)
        self.under_way: deque[list[int]] = deque()
        self.batch: list[int] = []
        self.touched: dict[str | int, int] = {}  # by the batch: a buffer, or an array that has none, to its elements
        self.filled = 0
        self.origins: dict[str, str] = {}  # a view of what has no buffer here, such as a weight, to that
        kept = {*resident, *graph.constants}
        for key in graph.inputs:
            if key not in kept and self.uses[key]:
                self._own(key, self.heap.allocate(graph.nbytes(key)))

    def _own(self, key: str, buffer: int) -> None:
        self.buffers[key] = buffer
        self.heap.owners[buffer] += 1

    def run(self) -> int:
        for node in self.graph.nodes:
            view = node.op in VIEWS and bool(node.inputs) and not self._copies(node)
            if not view:
                self._touch(node.inputs)
            held = self._place(node, view)
            if not view:
                self._touch(node.outputs)
            self._consume(node, held)
            self._work(node, held, self.backend.view_dispatches if view else self.backend.other_dispatches)
        return self.heap.peak

    def _place(self, node: Node, view: bool) -> set[int]:
        """Give the results their buffers; return those that stay until the operation is done."""
        if view:
            buffer = self.buffers.get(node.inputs[0])
            for key in node.outputs:
                self.dense[key] = self._stays_dense(node, key)
                if buffer is not None and self.uses[key]:
                    self._own(key, buffer)
                elif buffer is None:
                    self.origins[key] = self.origins.get(node.inputs[0], node.inputs[0])
            return set()
        given = self._donated(node)
        for key in node.outputs:
            self.dense[key] = True
            self._own(key, self.heap.allocate(self.graph.nbytes(key)) if given is None else given)
        return {self.buffers[key] for key in node.inputs if key in self.buffers} - {given}

    def _touch(self, keys: tuple[str, ...]) -> None:
        for key in keys:
            place = self.buffers.get(key, self.origins.get(key, key))
            self.touched.setdefault(place, prod(self.graph.shapes[key]))

    def _copies(self, node: Node) -> bool:
        return node.op in ("Reshape", "Flatten") and not self.dense.get(node.inputs[0], True)

    def _stays_dense(self, node: Node, output: str) -> bool:
        source = node.inputs[0]
        before, after = self.graph.shapes[source], self.graph.shapes[output]
        dense = self.dense.get(source, True)
        if node.op == "Transpose":
            moved = [axis for axis in node.arguments[0] if before[axis] != 1]
            return dense and moved == sorted(moved)
        if node.op in ("Slice", "Split"):
            cut = [axis for axis, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
            return dense and (not cut or all(size == 1 for size in after[: cut[-1]]))
        return dense and (node.op != "Broadcast" or before == after)

    def _donated(self, node: Node) -> int | None:
        """The buffer of an input that the result takes over."""
        if node.op not in _DONATING:
            return None
        (output,) = node.outputs
        for key in node.inputs:
            buffer = self.buffers.get(key)
            if buffer is None or self.heap.sizes.get(buffer) != self.graph.nbytes(output):
                continue
            alone = self.uses[key] == 1 and self.heap.owners[buffer] == 1 and not self.heap.readers[buffer]
            if alone and self.dense.get(key, True) and self.graph.widths[key] == self.graph.widths[output]:
                return buffer
        return None

    def _consume(self, node: Node, held: set[int]) -> None:
        for buffer in held:
            self.heap.readers[buffer] += 1
        for key in node.inputs:
            self.uses[key] -= 1
            if not self.uses[key] and key in self.buffers:
                self.heap.owners[self.buffers[key]] -= 1
        for key in node.outputs:
            if not self.uses[key] and key in self.buffers:
                self.heap.owners[self.buffers[key]] -= 1
        for key in {*node.inputs, *node.outputs}:
            if key in self.buffers:
                self.heap.release(self.buffers[key])

    def _work(self, node: Node, held: set[int], dispatches: int) -> None:
        """Put the operation into the batch that is being filled; a full one goes to the device."""
        self.batch.extend(held)
        self.filled += dispatches
        limit = self.backend.batch_elements
        if self.filled < self.backend.batch_dispatches and not (limit and sum(self.touched.values()) >= limit):
            return
        self.under_way.append(self.batch)
        self.batch, self.filled, self.touched = [], 0, {}
        if len(self.under_way) > self.backend.batches:
            for buffer in self.under_way.popleft():
                self.heap.readers[buffer] -= 1
                self.heap.release(buffer)


def peak_bytes(graph: Graph, backend: Backend, resident: Collection[str] = ()) -> int:
    """The most bytes that evaluating ``graph`` holds at once.

    Args:
        graph: What is evaluated.
        backend: What it is evaluated on.
        resident: Inputs that are kept anyway and are not counted, such as weights; the others are freed when read.
    """
    return _Evaluation(graph, backend, resident).run()
