"""Look into a checkpoint before it is converted.

Imports: errors, types, progress, source, layouts, output, run.
"""
