"""A captured step of generation on mlx-lm's caches: what is remembered of the tokens before is no longer an input.

Imports: graph.lower, graph.capture, graph.rewrite.
"""
