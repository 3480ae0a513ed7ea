"""Use a converted model: generate text, chat, or call it from Python, all on mlx-lm's own generation.

Importing this package is light; mlx, mlx-lm and transformers are imported when a model is loaded.

Imports: errors, model_config, printable, progress, source, quant, transform, layouts, output.
"""

from __future__ import annotations

from mlxport.run.auto import AutoModelForCausalLM, AutoTokenizer, MlxCausalLM
from mlxport.run.chat import ChatSession, chat
from mlxport.run.generate import generate, read_prompt
from mlxport.run.generation_result import GenerationResult
from mlxport.run.kv import KVQuant
from mlxport.run.load import LoadedModel, load
from mlxport.run.sampling import Sampling

__all__ = [
    "AutoModelForCausalLM",
    "AutoTokenizer",
    "ChatSession",
    "GenerationResult",
    "KVQuant",
    "LoadedModel",
    "MlxCausalLM",
    "Sampling",
    "chat",
    "generate",
    "load",
    "read_prompt",
]
