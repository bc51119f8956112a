"""Read off tensor names, shapes and config.json what a model is."""

from __future__ import annotations

import re
from collections.abc import Mapping

from mergekit.layout.modules import Modules, name_modules, shared_components
from mergekit.layout.overlay import overlay
from mergekit.layout.parts import PREDICTION, Layout, ModuleLayout, Part, Shape, Side, Stack
from mergekit.layout.stacks import find_stacks, split_name
from mergekit.layout.vocabulary import find_vocabulary
from mergekit.layout.words import modality

_POST = re.compile(r"final|post|classif|score|pooler|head|output|embed_out|mtp|nextn|cls\.(pred|seq)")
_PRE = re.compile(
    r"emb|wte|wpe|\btok|\bpos_|shared|conv1|conv2|conv_in|patch|stem|project_in|feature_|rotary|relative|inv_freq"
    r"|(\b|_)(pre|cls_token|class_token|mask_token|register_tokens?)(\b|_)"
)


def _side(name: str, module: ModuleLayout) -> Side:
    """Before or after the stack, from the words of the name below the stack's parent.

    Agrees with every listing of the peer's tables but two: lfm2's `embedding_norm` is a final norm (overlay), and
    `post` is read before `pre`, since DistilBERT's `pre_classifier` comes after the stack.
    """
    if module.stack is None and module.name != "default":
        return "post" if _POST.search(name) else "pre"
    components = name.split(".")
    if not overlay().post.isdisjoint(components):
        return "post"
    prefix = module.stack.prefix if module.stack else ""
    rest = ".".join(components[shared_components(name, prefix) :])
    return "pre" if _PRE.search(rest) and not _POST.search(rest) else "post"


def _place(name: str, stack: Stack) -> tuple[int | None, str, Side]:
    """Layer, suffix and side of a tensor under a stack's prefix; a number outside of the run is no layer."""
    number, _, suffix = name.removeprefix(stack.prefix + ".").partition(".")
    layer = int(number) - stack.first
    if 0 <= layer < stack.count:
        return layer, suffix, "layer"
    return None, name, "pre" if layer < 0 else "post"


def _owners(names: Mapping[str, Shape], stacks: tuple[Stack, ...]) -> dict[str, Stack]:
    """The stack of every tensor whose first number counts its layers."""
    by_prefix = {stack.prefix: stack for stack in stacks}
    splits = {name: split_name(name) for name in names}
    return {name: by_prefix[split[0]] for name, split in splits.items() if split and split[0] in by_prefix}


def _flag(config: Mapping[str, object]) -> bool | None:
    """Return ``tie_word_embeddings``, from the top level before the text model's own config."""
    configs = [config, *(value for key, value in config.items() if isinstance(value, Mapping) and not modality(key))]
    flags = [nested["tie_word_embeddings"] for nested in configs if "tie_word_embeddings" in nested]
    return next((flag for flag in flags if isinstance(flag, bool)), None)


def _parts(shapes: Mapping[str, Shape], stacks: tuple[Stack, ...], modules: Modules) -> dict[str, Part]:
    """Place every tensor, without roles."""
    owners = _owners(shapes, stacks)
    towers = {tower.stack: tower for tower in modules.towers}
    prediction = modules.loose_one(PREDICTION)
    parts = {}
    for name in shapes:
        stack = owners.get(name)
        module = towers[stack] if stack else modules.home(name)
        layer, suffix, side = _place(name, stack) if stack else (None, name, _side(name, module))
        if prediction and stack and _is_behind(name, stack):
            module = prediction
        parts[name] = Part(module.name, layer, suffix, side, None, None)
    return parts


def _is_behind(name: str, stack: Stack) -> bool:
    """Whether a tensor is numbered as a layer behind the last one; those predict further tokens (DeepSeek-V3).

    Where the layers do not begin at 0, the number before them is the embedding's and the one behind them the head's.
    """
    return stack.first == 0 and _place(name, stack)[0] is None


def read_layout(shapes: Mapping[str, Shape], config: Mapping[str, object]) -> Layout:
    """Say what a model is.

    Every tensor gets exactly one :class:`Part`. Nothing is looked up by architecture: layers come from numbers in
    names that config.json confirms, modules from the prefixes before the numbers, the vocabulary from shapes.

    Parameters:
        shapes: shape by tensor name, as in the checkpoint.
        config: the parsed config.json; may be empty.

    Example:
        >>> shapes = {"wte.weight": (97, 8), "h.0.mlp.weight": (8, 8), "h.1.mlp.weight": (8, 8), "ln_f.weight": (8,)}
        >>> layout = read_layout(shapes, {"n_layer": 2, "vocab_size": 97})
        >>> layout.main.stack
        Stack(prefix='h', count=2, count_key='n_layer', same_count_keys=(), config_path='', first=0)
        >>> layout.embedding, layout.tied, layout.parts["ln_f.weight"].side
        ('wte.weight', True, 'post')
    """
    stacks = find_stacks(shapes, config)
    in_stacks = _owners(shapes, stacks)
    behind = any(_is_behind(name, stack) for name, stack in in_stacks.items())
    modules = name_modules(stacks, [name for name in shapes if name not in in_stacks], behind)
    parts = _parts(shapes, stacks, modules)
    tokens = {
        name: shapes[name] for name, part in parts.items() if part.layer is None and _holds_tokens(part.module, modules)
    }
    vocabulary = find_vocabulary(tokens, config)
    for name, (role, axis) in vocabulary.roles.items():
        part = parts[name]
        side: Side = part.side if role == "embedding" else "post"
        parts[name] = Part(part.module, part.layer, part.suffix, side, role, axis)
    tied = _flag(config)
    if tied is None:
        tied = all(role != "head" or parts[name].module == PREDICTION for name, (role, _) in vocabulary.roles.items())
    return Layout((*modules.towers, *modules.loose), parts, vocabulary.key, tied, modules.main)


def _holds_tokens(module: str, modules: Modules) -> bool:
    """Towers and projectors have no vocabulary; a single stack and the shared module have."""
    return len(modules.towers) == 1 or not (module == "multi_modal_projector" or modality(module))
