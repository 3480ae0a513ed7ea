"""Functions that emitted source calls where MLX has no single call: plain MLX, copied into the ports that use them.

Imports: graph.lower.
"""
