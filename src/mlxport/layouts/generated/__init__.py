"""The layout that brings MLX source of its own, written from the PyTorch model.

Imports: errors, printable, types, source, quant, transform, layouts, graph.
"""
