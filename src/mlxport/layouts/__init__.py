"""What runtimes load, as data: one table of layouts, one file or folder for each.

Imports: errors, types, source, quant, transform, graph.
"""
