"""The rewritten graph as source a person could have written: tree, bodies, names, classes, loops.

Imports: graph.lower, graph.capture, graph.rewrite.caches.
"""
