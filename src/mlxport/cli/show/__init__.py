"""What a person sees, one file for each thing that is printed.

Imports: errors, types, progress, convert, parity, fit, quality, allocate, inspect.
"""
