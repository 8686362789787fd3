"""The vocabulary check of `make lint`: ``check_vocabulary.py`` and its list of terms, ``vocabulary.yaml``."""
