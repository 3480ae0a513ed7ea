"""Quantization by what a model computes on a text: activation statistics and error feedback, block by block.

mlx-lm's own model runs once over all sequences of the text, as one batch that holds each sequence twice: once for the
original and once for what has been quantized so far. Whenever it calls one of its blocks, the block's weights are read,
the inputs of its matrices are measured, the matrices are quantized, and both halves of the batch go on, each with its
weights. So one block's weights and the activations between two blocks are all that is in memory, and masks, caches,
routing and whatever else an architecture does between and in its blocks are its own code.

Imports: errors, types, model_config, source, quant, transform, output, model.
"""
