"""Convolutions and what lies between them with the channels in the last axis.

Imports: graph.lower, graph.rewrite.
"""
