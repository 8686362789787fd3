"""Check of the table of contents of a zip file from elsewhere, before a member is read."""

import zipfile

_PLAIN = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others expand without bound in one call
_LARGEST_RATIO = 1040  # of deflate
_SPARE_BYTES = 4096
_LOCAL_HEADER = 30  # bytes before the name of a member


def check_members(file: zipfile.ZipFile) -> None:
    """Check that the size of all members together is bounded by the size of the file.

    Members that share bytes would let a file of kilobytes expand to terabytes, although each of them is plausible.

    Raises:
        ValueError: a member is repeated, overlaps another one, lies outside of the file, or declares more bytes than
            deflate can store in it.
    """
    members, end = sorted(file.infolist(), key=lambda member: member.header_offset, reverse=True), file.start_dir
    names: set[str] = set()
    for member in members:
        _check_size(member)
        if member.filename in names:
            raise ValueError(f"{member.filename!r} occurs twice")
        names.add(member.filename)
        if member.header_offset < 0:
            raise ValueError(f"{member.filename!r} is not within the file")
        if member.header_offset + _LOCAL_HEADER + len(member.orig_filename) + member.compress_size > end:
            raise ValueError(f"{member.filename!r} overlaps another member")
        end = member.header_offset


def _check_size(member: zipfile.ZipInfo) -> None:
    if member.compress_type not in _PLAIN:
        raise ValueError(f"{member.filename!r} has another compression than deflate")
    largest = member.compress_size
    if member.compress_type == zipfile.ZIP_DEFLATED:
        largest = _LARGEST_RATIO * largest + _SPARE_BYTES
    if member.file_size > largest:
        raise ValueError(f"{member.filename!r} declares {member.file_size} bytes, stored in {member.compress_size}")
