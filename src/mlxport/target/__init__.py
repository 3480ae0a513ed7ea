"""Targets: one module for each layout that a runtime loads."""
