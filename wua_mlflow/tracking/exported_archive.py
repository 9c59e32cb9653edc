"""Whether an exported graph (``pt2``) is a graph alone: loading one can run code in three places.

``torch.export.load`` evaluates the text of symbolic sizes (``sympy.sympify``), compiles the text of
guards (``exec``), and looks operators up by dotted names, which reach ``torch.os.system`` as well
as ``torch.ops.aten.relu``. Pickled records are MLflow's to refuse. Tests:
``tests/tracking/test_exported_archive.py``.
"""

from __future__ import annotations

import ast
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["foreign_code"]

_OPERATOR = re.compile(
    r"torch\.ops\.[A-Za-z]\w*\.(?:__(?:and|or|xor|lshift|rshift)__|_?[A-Za-z]\w*)(?:\.[A-Za-z]\w*)?"
    r"|_operator\.[a-z]\w*|math\.[a-z]\w*|torch\.sym_[a-z]\w*|torch\._sym_[a-z]\w*")
_FORBIDDEN = re.compile(r"_operator\.(?:attrgetter|itemgetter|methodcaller|call)"
                        r"|torch\.ops\.(?:load_library|import_module|loaded_libraries).*")
_FUNCTIONS = frozenset((
    "FloorDiv", "CeilDiv", "CleanDiv", "IntTrueDiv", "FloatTrueDiv", "Mod", "PythonMod",
    "ModularIndexing", "Where", "Max", "Min", "Pow", "PowByNatural", "FloatPow", "LShift", "RShift",
    "CeilToInt", "FloorToInt", "TruncToInt", "RoundToInt", "TruncToFloat", "RoundDecimal",
    "ToFloat", "Identity", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "And", "Or", "Not", "Abs", "abs",
    "floor", "ceiling", "sqrt", "oo", "int_oo", "inf", "math", "true", "false", "True", "False",
    "L", "min", "max", "cast_symbool_to_symint_guardless", "Symbol", "Dummy", "Integer", "Rational",
    "Float", "Add", "Mul", "Equality", "Unequality", "GreaterThan", "LessThan", "StrictGreaterThan",
    "StrictLessThan", "Piecewise", "ExprCondPair"))
_TAKE_TEXT = ("Symbol", "Dummy", "Float")
_TEXT = re.compile(r"[\w.+\-]{1,200}")
_SYMBOL = re.compile(r"[a-z]{1,6}\d+")
_METHODS = frozenset(("size", "stride", "storage_offset", "dim", "floor", "ceil", "trunc", "sqrt"))
_NODES = (ast.Expression, ast.Compare, ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.Constant, ast.Name,
          ast.Load, ast.Call, ast.Subscript, ast.Attribute, ast.boolop, ast.cmpop, ast.operator,
          ast.unaryop, ast.keyword)


def foreign_code(archive: Path) -> str:
    """What of an archive would run as code, in words; "" where it is a graph alone.

    Args:
        archive: a ``.pt2`` file.
    """
    with zipfile.ZipFile(archive) as records:
        for name in records.namelist():
            if not name.endswith(".json"):
                continue
            for key, value in _strings(json.loads(records.read(name))):
                if key == "expr_str" and not _is_arithmetic(value):
                    return f"the size {_beginning(value)}"
                if key == "guards_code" and not _is_arithmetic(value):
                    return f"the guard {_beginning(value)}"
                if key == "target" and not _is_operator(value):
                    return f"the operator {_beginning(value)}"
    return ""


def _strings(content: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """All texts of a JSON value, each with the key that it or its list stands under."""
    pending = [(key, content)]
    while pending:
        name, value = pending.pop()
        if isinstance(value, dict):
            pending += [(str(inner), item) for inner, item in value.items()]
        elif isinstance(value, list):
            pending += [(name, item) for item in value]
        elif isinstance(value, str):
            yield name, value


def _is_operator(target: str) -> bool:
    """Whether it names an operator, or a part of the module (inputs and outputs have targets too).

    >>> _is_operator("torch.ops.aten._softmax.default"), _is_operator("fc1.weight")
    (True, True)
    >>> _is_operator("torch.os.system"), _is_operator("torch.ops.load_library")
    (False, False)
    """
    if not target.startswith(("torch", "_operator", "math", "#")):
        return True  # torch leaves it text
    return bool(_OPERATOR.fullmatch(target)) and not _FORBIDDEN.fullmatch(target)


def _is_arithmetic(expression: str) -> bool:
    """Whether it computes with sizes, and can do nothing else.

    >>> _is_arithmetic("Mul(Integer(2), Symbol('s52', positive=True))")
    True
    >>> _is_arithmetic("2*s77 + FloorDiv(s77, 3)"), _is_arithmetic("L['x'].size()[0] >= 2")
    (True, True)
    >>> _is_arithmetic("exec(chr(112))"), _is_arithmetic("().__class__"), _is_arithmetic("Max('x')")
    (False, False, False)
    """
    try:
        nodes = list(ast.walk(ast.parse(expression.strip(), mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    texts = {id(node.slice) for node in nodes if isinstance(node, ast.Subscript)}
    texts |= {id(node.args[0]) for node in nodes if isinstance(node, ast.Call) and node.args
              and isinstance(node.func, ast.Name) and node.func.id in _TAKE_TEXT}
    for node in nodes:
        if not isinstance(node, _NODES):
            return False
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and not (
                id(node) in texts and _TEXT.fullmatch(node.value)):
            return False  # sympy evaluates a text that it is given
        if isinstance(node, ast.Name) and not (
                node.id in _FUNCTIONS or _SYMBOL.fullmatch(node.id)):
            return False
        if isinstance(node, ast.Attribute) and node.attr not in _METHODS:
            return False
    return True


def _beginning(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:59]}…")
