"""Download of public data: choice of objects (``sevir_download.py``), transfer of one object (``s3_transfer.py``)."""
