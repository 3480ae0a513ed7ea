"""The layout that mlx-lm loads, made by mlx-lm's own code under the trace.

Imports: errors, types, source, quant, transform, layouts.
"""
