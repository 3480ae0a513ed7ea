"""What a person sees, one file for each thing that is printed.

Imports: types, progress, printable, convert, parity, fit, quality, allocate, inspect, source.
"""
