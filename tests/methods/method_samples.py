"""Valid methods with random parameters, and tensors for them."""

from dataclasses import dataclass

import numpy as np
from kernel_formats import decode, encode

from mergekit.methods import METHODS

SEEDS = range(6)
MOST = 4  # models


@dataclass(frozen=True)
class Sample:
    """A method with parameters, how many models it merges, and whether it is given a base."""

    method: object
    models: int
    based: bool

    @property
    def name(self):
        return self.method.name

    @property
    def parameters(self):
        """Values by the names they have in recipes."""
        return {each.name: getattr(self.method, each.field) for each in self.method.parameters()}

    def permuted(self, order):
        """The same method for the models in another order."""
        per_model = {each.field for each in self.method.parameters() if each.per_model}
        values = {each.field: getattr(self.method, each.field) for each in self.method.parameters()}
        changed = {name: tuple(value[i] for i in order) for name, value in values.items() if name in per_model}
        return Sample(type(self.method)(**{**values, **changed}), self.models, self.based)


def number(declared, random):
    """A number within the bounds, at times one of them; without bounds mostly positive, as weights are."""
    bounds = [bound for bound in (declared.low, declared.high) if bound is not None]
    if bounds and random.random() < 0.2:
        return float(random.choice(bounds))
    low = -0.3 if declared.low is None else declared.low
    high = low + 2 if declared.high is None else declared.high
    return float(random.uniform(min(low, high), high))


def value(declared, random):
    """A valid value of a parameter that is not a flag, for one model."""
    if declared.kind == "float":
        return number(declared, random)
    if declared.kind == "int" and (declared.low is not None or declared.high is not None):
        low = int(declared.low if declared.low is not None else declared.high - 10)
        return int(random.integers(low, int(low + 10 if declared.high is None else declared.high) + 1))
    return str(random.choice((declared.default, *declared.choices))) if declared.choices else declared.default


def setting(declared, models, random):
    """A valid value of a parameter, one for each model if it has one for each."""
    drawn = tuple(value(declared, random) for _ in range(models if declared.per_model else 1))
    return drawn if declared.per_model else drawn[0]


def default(declared, models):
    return (declared.default,) * models if declared.per_model else declared.default


def sample(name, seed):
    """A method with random valid parameters; with the seed 0, the defaults wherever there are some.

    The flags are the digits of the seed, so that a few seeds in a row go through all their combinations; the first of
    them is whether there is a base, where that is optional.
    """
    cls, random = METHODS[name], np.random.default_rng(seed)
    models = int(random.integers(cls.needs.least, min(cls.needs.most or MOST, max(MOST, cls.needs.least)) + 1))
    flags = [each.field for each in cls.parameters() if each.kind == "bool" and not each.per_model]
    for attempt in range(100):
        drawn = {each.field: setting(each, models, random) for each in cls.parameters()}
        digits = (seed + attempt) << (cls.needs.base != "optional")
        based = cls.needs.base == "required" or bool(digits & 1)
        drawn |= {field: bool(digits >> place & 1) for place, field in enumerate(flags, 1)}
        if seed == 0:
            drawn |= {each.field: default(each, models) for each in cls.parameters() if not each.required}
        found = Sample(cls(**drawn), models, based)
        if not any(found.method.mistakes()):
            return found
    raise AssertionError(f"no valid parameters of {name} in a hundred tries")


def tensors(seed, found, shape, name):
    """A base (None if the method takes none) and models, raw: near each other, with entries and deltas of 0.

    Values are multiples of a step that float32 subtracts without rounding, so that magnitudes of deltas tie where
    they tie in exact arithmetic, and nowhere else.
    """
    random = np.random.default_rng([seed, 7])
    step = 2.0 ** (-21 if name == "F32" else -16)
    spread = (0.0005, 0.01, 0.05)[seed % 3]

    def near(origin, scale):
        moved = origin + random.normal(0, scale, shape) * (random.random(shape) > 0.1)
        return encode(np.rint(moved / step) * step, name)

    base = near(np.zeros(shape), 0.05)
    models = [near(decode(base).reshape(shape).astype(np.float64), spread) for _ in range(found.models)]
    return (base if found.based else None), models


def wide(base, models):
    """Raw tensors in float64."""
    widened = [
        None if each is None else decode(each).reshape(each.shape).astype(np.float64) for each in (base, *models)
    ]
    return widened[0], widened[1:]
