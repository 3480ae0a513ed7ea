"""Pictures by diffusion: noise levels, samplers, prompts, and the loop that takes noise away.

Imports: errors, source, layouts, run.
"""
