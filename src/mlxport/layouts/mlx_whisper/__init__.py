"""The layout that mlx-whisper loads: Whisper, from Hugging Face or OpenAI, under mlx-whisper's names.

Imports: errors, types, source, quant, transform, layouts.
"""
