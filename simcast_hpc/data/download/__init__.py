"""Fetching public data: which objects (``sevir.py``), one object into one file (``transfer.py``), its checksum."""
