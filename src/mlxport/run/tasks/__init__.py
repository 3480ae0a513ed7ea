"""What a converted model is for, as Hugging Face names tasks: one file a task, named as it, with its ``PIPELINE``.

Imports: errors, model_config, options, source, layouts, output, run, run.media.
"""
