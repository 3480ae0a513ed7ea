"""Loops over a length, which torch.export unrolls: rolled up again, and their length left free.

Imports: graph.capture, graph.lower.
"""
