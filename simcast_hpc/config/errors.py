"""Errors whose message is for the user: each has an exit status and is printed without a traceback."""


class SimcastError(Exception):
    """Base of all foreseen errors; the message is shown to the user without a traceback."""

    exit_status = 1
    printed_by_rank_0 = False  # whether another rank prints the same error


class ConfigError(SimcastError, ValueError):
    """Invalid configuration; the message names every key, its value and what would be valid."""


class DataError(SimcastError, ValueError):
    """Invalid data; the message names the file, what is wrong with it and what would be valid."""
