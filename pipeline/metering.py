"""Rewriting a template so that it pays as it goes.

Jinja compiles a syntax tree to Python that loops, compares, slices and joins text without asking anyone. `Metering`
puts payments into the tree, as filters of our own: each pass through a loop and each call of a macro pays for the nodes
in its body, and what comparisons, dict keys, slices, `~` and `f(*these)` look at is paid for by its size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import TemplateSyntaxError
from jinja2.runtime import Context
from jinja2.utils import pass_context
from jinja2.visitor import NodeTransformer

from . import budget

_NODES_PER_STEP = 8
_REFUSED_TAGS: dict[type[nodes.Node], str] = {
    nodes.Block: "block",
    nodes.Extends: "extends",
    nodes.FromImport: "from",
    nodes.Import: "import",
    nodes.Include: "include",
    nodes.ScopedEvalContextModifier: "autoescape",
}


class Metering(NodeTransformer):
    """Rewrites a syntax tree so that what Jinja would do unasked is paid for; refuses what needs other templates."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        step = _step_of(node)
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(step, lineno=node.lineno))
        if node.test is not None:
            node.test = nodes.And(step, node.test, lineno=node.lineno)
        return node

    def visit_Macro(self, node: nodes.Macro | nodes.CallBlock) -> nodes.Node:
        step = _step_of(node)
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(step, lineno=node.lineno))
        return node

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return self.visit_Macro(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _operation("concat", nodes.List(node.nodes, lineno=node.lineno))

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _operation("read", node.expr)
        for operand in node.ops:
            operand.expr = _operation("read container" if operand.op in ("in", "notin") else "read", operand.expr)
        return node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        for pair in node.items:
            pair.key = _operation("read", pair.key)  # it is hashed
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        bounds = (node.arg.start, node.arg.stop, node.arg.step)
        return _operation("slice", node.node, [bound or nodes.Const(None, lineno=node.lineno) for bound in bounds])

    def visit_Call(self, node: nodes.Call | nodes.Filter | nodes.Test) -> nodes.Node:
        self.generic_visit(node)
        for name in ("dyn_args", "dyn_kwargs"):  # f(*these, **those)
            if getattr(node, name) is not None:
                setattr(node, name, _operation("items", getattr(node, name)))
        return node

    def visit_Filter(self, node: nodes.Filter) -> nodes.Node:
        return self.visit_Call(node)

    def visit_Test(self, node: nodes.Test) -> nodes.Node:
        return self.visit_Call(node)

    def _refuse(self, node: nodes.Node) -> nodes.Node:
        tag = _REFUSED_TAGS[type(node)]
        raise TemplateSyntaxError(f"{{% {tag} %}} is not supported: a template is text in one piece", node.lineno)

    visit_Block = visit_Extends = visit_Include = visit_Import = visit_FromImport = _refuse
    visit_ScopedEvalContextModifier = _refuse


def _step_of(node: nodes.Node) -> nodes.Filter:
    """Payment for executing every node inside `node` once."""
    steps = 1 + sum(1 for _ in node.find_all(nodes.Node)) // _NODES_PER_STEP
    return _operation("step", nodes.Const(steps, lineno=node.lineno))


def _operation(name: str, value: nodes.Expr, arguments: list[nodes.Expr] | None = None) -> nodes.Filter:
    return nodes.Filter(value, f" {name}", arguments or [], [], None, None, lineno=value.lineno)


def _pay_step(steps: int) -> bool:
    budget.spend(steps)
    return True


def _read_container(value: Any) -> Any:
    return value if isinstance(value, dict) else budget.read(value)


def _slice(value: Any, start: Any, stop: Any, step: Any) -> Any:
    bounds = slice(start, stop, step)
    if isinstance(value, (str, list, tuple)):
        items = len(range(*bounds.indices(len(value))))
        budget.spend(items // budget.CHARS_PER_STEP if isinstance(value, str) else items)
    return value[bounds]


@pass_context
def _concat(context: Context, values: list[Any]) -> str:
    return "".join([context.environment.text(value) for value in values])  # type: ignore[attr-defined]


# As filters they have names that start with a space, which no template can write.
OPERATIONS: dict[str, Callable[..., Any]] = {
    " concat": _concat,
    " items": budget.items,
    " read": budget.read,
    " read container": _read_container,
    " slice": _slice,
    " step": _pay_step,
}
