"""Paths of the module tree as the port has them, and how its source spells them."""

from __future__ import annotations

import ast
import keyword

import mlx.nn as nn
import torch

__all__ = ["Paths", "access", "member", "target"]

_TAKEN = frozenset(dir(nn.Module)) | {"state", "training"}


def access(tree: ast.expr, name: str) -> ast.expr:
    """``tree.name``; ``tree[0]`` for an element of a list, ``tree["update"]`` for what Python or nn.Module takes."""
    if name.isdigit():
        return ast.Subscript(tree, ast.Constant(int(name)))
    if name.isidentifier() and not keyword.iskeyword(name) and name not in _TAKEN:
        return ast.Attribute(tree, name)
    return ast.Subscript(tree, ast.Constant(name))


def member(path: str) -> ast.expr:
    """``self.layers[0].weight`` for a path relative to the module."""
    tree: ast.expr = ast.Name("self")
    for name in path.split("."):
        tree = access(tree, name)
    return tree


def target(owner: str, name: str) -> str:
    """The text of ``owner.name`` for an attribute that is not an element of a list."""
    return ast.unparse(ast.fix_missing_locations(access(ast.parse(owner, mode="eval").body, name)))


def _is_list(module: torch.nn.Module) -> bool:
    return type(module).forward in (torch.nn.Sequential.forward, torch.nn.ModuleList.forward)  # the latter: none


class Paths:
    """The port's name of each module, parameter and buffer: the original's, where MLX can have it.

    MLX leaves attributes that begin with an underscore out of ``parameters()``, and numbers are elements of lists only
    where all of a module's children are numbered. The members of a Sequential that is a class of its own in the port
    (the root, or one with another forward) are its ``layers``, as in ``nn.Sequential`` of MLX.
    """

    def __init__(self, modules: dict[str, torch.nn.Module]) -> None:
        self._children: dict[str, list[str]] = {}
        for path, module in modules.items():
            self._children[path] = [*module._modules, *module._parameters, *module._buffers]
        self._lists = {path for path, module in modules.items() if path and _is_list(module)}
        self._known: dict[str, str] = {"": ""}

    def port(self, path: str) -> str:
        """The path in the port of a path of the original."""
        if path not in self._known:
            parent, _, name = path.rpartition(".")
            prefix = self.port(parent)
            own = self._name(parent, name)
            self._known[path] = f"{prefix}.{own}" if prefix else own
        return self._known[path]

    def relative(self, path: str, scope: str) -> str:
        """The port's path of ``path`` seen from the module ``scope``, which contains it."""
        full = self.port(path)
        return full[len(self.port(scope)) + 1 :] if scope else full

    def _name(self, parent: str, name: str) -> str:
        siblings = self._children.get(parent, [])
        if name.isdigit():
            if any(not other.isdigit() for other in siblings):
                return self._free("m" + name, siblings)
            return name if parent in self._lists else f"layers.{name}"
        if name.startswith("_"):
            return self._free(name.strip("_") or "x", siblings)
        return name

    def _free(self, name: str, siblings: list[str]) -> str:
        while name in siblings:
            name += "_"
        return name
