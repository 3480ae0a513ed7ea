"""What a person sees, one file for each thing that is printed.

Imports: types, progress, convert, parity, fit, quality, allocate, inspect.
"""
