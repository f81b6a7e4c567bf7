"""Lance's SQL."""


def quoted(text: str) -> str:
    """Write a text as a literal.

    Examples
    --------
    >>> print(quoted("the keeper's log"))
    'the keeper''s log'
    """
    return "'" + text.replace("'", "''") + "'"
