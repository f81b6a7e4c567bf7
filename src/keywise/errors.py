"""The errors keywise raises: every one names the argument, its value and what would work."""


class KeywiseError(Exception):
    """Anything keywise refuses to do, or could not do."""


class ShapeError(KeywiseError, ValueError):
    """An array's shape does not fit the other arguments."""


class DtypeError(KeywiseError, TypeError):
    """An argument's type or element type is not one that keywise takes."""


class OptionError(KeywiseError, ValueError):
    """An option's value cannot be used."""


class TargetError(KeywiseError, RuntimeError):
    """No kernel can run this: unknown target, CPU without it, another device, gradients wanted."""


class FormatError(KeywiseError, ValueError):
    """A file is missing, damaged, empty or of a kind that cannot be read."""


class ModelError(KeywiseError, RuntimeError):
    """A model is missing or cannot do what is asked of it."""
