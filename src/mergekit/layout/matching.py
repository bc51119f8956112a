"""One model's layout in the words of another's."""

from __future__ import annotations

from dataclasses import replace

from mergekit.layout.parts import Layout


def named_as(layout: Layout, donor: Layout) -> Layout:
    """The layout with its modules called as the donor calls those whose layers have the same prefix.

    A language model on its own has one module; inside a vision-language model it is one of several.

    Parameters:
        layout: of a model whose tensors are named as in the donor.
        donor: the layout that decides.
    """
    theirs = {module.stack.prefix: module for module in donor.modules if module.stack}
    met = {own.name: theirs[own.stack.prefix] for own in layout.modules if own.stack and own.stack.prefix in theirs}
    if all(name == module.name for name, module in met.items()):
        return layout
    modules = tuple(
        replace(own, name=met[own.name].name, aliases=met[own.name].aliases) if own.name in met else own
        for own in layout.modules
    )
    parts = {
        name: replace(part, module=met[part.module].name) if part.module in met else part
        for name, part in layout.parts.items()
    }
    main = modules[layout.modules.index(layout.main)]
    return replace(layout, modules=modules, parts=parts, main=main)
