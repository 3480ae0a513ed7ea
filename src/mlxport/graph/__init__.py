"""From a PyTorch module to MLX source, in the order in which it flows: capture, rewrite, lower, write.

``build`` is the table of contents. ``capture`` exports the module as a graph of ATen ops; ``rewrite`` makes that graph
smaller and nearer to MLX; ``lower``, which stands before all of them, knows what each op is and how MLX says it;
``write`` makes source of what is left.

Imports: nothing.
"""
