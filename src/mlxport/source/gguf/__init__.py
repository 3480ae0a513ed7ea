"""GGUF, llama.cpp's files: header, blocks, and what they are under the names of transformers.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Nothing of llama.cpp is needed to read it.

Imports: errors, types, source.
"""
