"""torch.export and what surrounds it: a module as a functional ATen graph.

Imports: errors, printable, graph.lower.
"""
