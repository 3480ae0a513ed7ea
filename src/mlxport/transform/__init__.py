"""Maps from checkpoint tensors to output tensors, known as a graph before a byte of weights is read.

A target states its map as ordinary MLX code on a dict of arrays (mlx-lm's own ``sanitize`` and ``quantize_model``, for
one). ``trace`` runs that code once on placeholders and keeps the graph, so that any range of rows of any output can be
computed from just the bytes that it needs.

Imports: errors, types, source, quant.
"""

from mlxport.transform.derived import derive
from mlxport.transform.dtypes import float32, mx_dtype, st_dtype, to_bytes, to_mx
from mlxport.transform.evaluate import BLOCK_BYTES, Evaluator, lazy_arrays, row_blocks, working_bytes
from mlxport.transform.exported import export
from mlxport.transform.inverse_values import as_type, dequantized, inverse_values, stored_value
from mlxport.transform.invert import NotInvertible, invert
from mlxport.transform.program import Call, Output, Pipeline, Program, Value
from mlxport.transform.program_digest import program_digest
from mlxport.transform.replacing import replacing
from mlxport.transform.trace import lazy_outputs, trace, trace_shapes

__all__ = [
    "BLOCK_BYTES",
    "Call",
    "Evaluator",
    "NotInvertible",
    "Output",
    "Pipeline",
    "Program",
    "Value",
    "as_type",
    "dequantized",
    "derive",
    "export",
    "float32",
    "inverse_values",
    "invert",
    "lazy_arrays",
    "lazy_outputs",
    "mx_dtype",
    "program_digest",
    "replacing",
    "row_blocks",
    "st_dtype",
    "stored_value",
    "to_bytes",
    "to_mx",
    "trace",
    "trace_shapes",
    "working_bytes",
]
