"""Look into a checkpoint before it is converted.

Imports: errors, types, model_config, source, quant, layouts, output, run.
"""
