"""The way back: from a folder in MLX's layout to one that transformers loads, by the map that led there.

Imports: errors, types, progress, source, quant, transform, layouts.
"""
