"""Exit codes of the command line."""

FAILURE = 1
USER_MISTAKE = 2
FINDINGS = 3
INTERRUPTED = 130
