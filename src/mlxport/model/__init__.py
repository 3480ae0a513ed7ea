"""An MLX model whose weights are not in memory: open it, walk its blocks, hook its calls, read rows, stream.

Imports: errors, model_config, types, source, transform, layouts.generated.
"""
