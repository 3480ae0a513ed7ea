"""What an ATen op is in MLX: the table of ops, their kinds, expressions and helpers; it stands before all passes.

Imports: errors.
"""
