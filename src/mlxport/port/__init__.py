"""``port``: a PyTorch module to MLX, in memory, into a folder, or behind ``torch.compile``.

Imports: errors, options, source, quant, transform, layouts, output, graph, run, parity, convert.
"""
