"""``convert``: what the user asks for, and the steps from a checkpoint to a verified folder.

Imports: errors, types, model_config, options, progress, _version, source, quant, transform, layouts, output, model,
run, parity, calibrate, fit, distill, allocate, quality.
"""
