"""Text in Lance's SQL."""


def quote_literal(text: str) -> str:
    """Return a text as a string literal of SQL.

    Parameters
    ----------
    text
        Any text.

    Returns
    -------
    str
        The literal, quotation marks included.

    Examples
    --------
    >>> print(quote_literal("the keeper's log"))
    'the keeper''s log'
    """
    return "'" + text.replace("'", "''") + "'"
