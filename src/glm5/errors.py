"""The two ways a command can end badly, told to the person who ran it.

Every message says what was wrong, where, and what to do. The command line prints it as one line and exits with
`exit_code`; a traceback is for bugs only.
"""


class GLM5Error(Exception):
    """Something failed while working: a corpus is empty, a shard is truncated, the disk is full."""

    exit_code = 1


class UsageError(GLM5Error):
    """What was asked for cannot be done as asked: a typo in a recipe, an impossible shape, an unknown preset."""

    exit_code = 2
