"""Look into a checkpoint before it is converted.

Imports: errors, types, model_config, progress, source, quant, layouts, output, run.
"""
