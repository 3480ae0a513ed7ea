"""Options as data: a field says its default, help, spelling and check once, for the command line and for Python.

Imports: errors.
"""
