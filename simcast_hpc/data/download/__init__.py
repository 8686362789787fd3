"""Download of public data.

- ``archive_download``: a product of an archive in ``open_archives`` for a period; ``zarr_download``: of a Zarr store.
- ``sevir_download``: SEVIR from its bucket.
- ``object_transfer``: transfer of one file, resumed and verified, through ``http_ranges`` or ``s3_transfer``.
"""
