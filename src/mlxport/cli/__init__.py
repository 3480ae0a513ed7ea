"""The command line: parse, call, print.

Imports: errors, types, progress, printable, _version, options, convert, port, run, fit, quality, inspect, parity,
allocate.
"""
