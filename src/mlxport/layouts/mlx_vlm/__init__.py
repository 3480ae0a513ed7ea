"""The layout of models of pictures and text that mlx-vlm runs: its names and its reading of configs, as data of ours.

Nothing here imports mlx-vlm: a conversion needs it neither to be installed nor to be run.

Imports: errors, types, model_config, progress, source, quant, transform, layouts.
"""
