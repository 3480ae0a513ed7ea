"""What runtimes load, as data: one table of layouts, one file or folder for each.

Imports: errors, types, model_config, progress, source, quant, transform, graph.
"""
