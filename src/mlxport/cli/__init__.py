"""The command line: parse, call, print.

Imports: errors, types, progress, _version, source, quant, convert, port, run, fit, quality, inspect, parity, allocate.
"""
