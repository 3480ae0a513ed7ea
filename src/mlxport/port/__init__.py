"""``port``: a PyTorch module to MLX, in memory, into a folder, or behind ``torch.compile``.

Imports: errors, types, progress, source, quant, transform, layouts, output, graph, model, run, parity, convert.
"""
