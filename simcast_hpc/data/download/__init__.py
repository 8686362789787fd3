"""Download of public data: selection of objects (``sevir_download.py``), transfer of one object (``s3_transfer.py``)."""
