"""Every model family of the installed transformers: built tiny, run with eager, sdpa and keywise, and compared.

`python -m tests.families` walks all of them and writes the tables of the plug-in; see `make families`.
"""
