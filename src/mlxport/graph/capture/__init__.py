"""torch.export and what surrounds it: a module as a functional ATen graph.

Imports: errors, options, printable, graph.lower.
"""
