"""Plan, shards, blocks, workspace, record and card: everything that is written.

Imports: errors, types, _version, source, quant, transform, layouts.
"""
