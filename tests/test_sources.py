"""What holds for every module, whatever it is about."""

import ast
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "cluster").rglob("*.py"))


def _members(class_: ast.ClassDef) -> Iterator[tuple[str, list[ast.expr]]]:
    """Yield the members of a class, each with the annotations that stand in the class."""
    for statement in class_.body:
        match statement:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation):
                yield name, [annotation]
            case ast.Assign(targets=targets):
                yield from ((name.id, []) for name in targets if isinstance(name, ast.Name))
            case ast.FunctionDef(name=name, args=args) | ast.AsyncFunctionDef(name=name, args=args):
                parameters = chain(args.posonlyargs, args.args, args.kwonlyargs)
                named = [*parameters, *filter(None, (args.vararg, args.kwarg))]
                annotations = [each.annotation for each in named] + [statement.returns]
                yield name, [annotation for annotation in annotations if annotation is not None]


def test_no_annotation_names_a_member_of_its_class() -> None:
    """As of Python 3.14 annotations are evaluated when asked for: then the member is found."""
    wrong = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                members = list(_members(node))
                names = {name for name, _ in members}
                expressions = chain.from_iterable(annotations for _, annotations in members)
                for part in chain.from_iterable(map(ast.walk, expressions)):
                    if isinstance(part, ast.Name) and part.id in names:
                        wrong.append(f"{path.relative_to(ROOT)}:{part.lineno}: {part.id}")
    assert wrong == []
