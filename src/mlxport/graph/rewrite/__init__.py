"""The captured graph made smaller and nearer to MLX: no-ops, constants, folding, layers, channels-last, fusions.

Imports: graph.lower, graph.capture.
"""
