"""From a PyTorch program to MLX source: capture, lower, fuse, emit.

Imports: nothing.
"""
