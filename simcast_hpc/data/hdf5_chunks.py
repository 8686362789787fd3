"""Check of compressed chunks of an HDF5 file from elsewhere, before HDF5 decompresses them.

HDF5 expands a chunk as far as its bytes or their header state, whatever the size of a chunk in the file is: a chunk of
kilobytes can fill the memory.
"""

import bz2
import itertools
import math
import zlib
from collections.abc import Sequence

import h5py
from h5py import h5d  # pyright: ignore[reportAttributeAccessIssue]

from simcast_hpc.config import DataError

_DEFLATE, _SHUFFLE, _FLETCHER32, _SZIP, _NBIT, _SCALE_OFFSET = range(1, 7)
_BZIP2, _LZF, _BLOSC, _LZ4, _BITSHUFFLE, _ZSTD = 307, 32000, 32001, 32004, 32008, 32015
_SAME_SIZE = {_SHUFFLE, _FLETCHER32, _NBIT, _SCALE_OFFSET}  # what is stored bounds what they return
_COMPRESSORS = {_DEFLATE, _SZIP, _BZIP2, _LZF, _BLOSC, _LZ4, _BITSHUFFLE, _ZSTD}
_DEFLATE_RATIO = 1040
_MOST_EXPANDED = 1 << 30  # deflate that cannot exceed it is not decompressed for the check
_MOST_CHUNKS = 1_000_000  # HDF5 needs about 300 bytes of memory for each chunk of a read


def check_layout(dataset: h5d.DatasetID, where: str, *, read_shape: Sequence[int]) -> None:
    """Check the filters of a dataset in chunks, the number of chunks of a read, and the stored size of each chunk.

    Args:
        dataset: a dataset in chunks.
        where: named in messages.
        read_shape: shape that is read at once.

    Raises:
        DataError: a filter is not supported, a read needs too many chunks, or a chunk stores more than it can hold.
    """
    properties = dataset.get_create_plist()
    chunk = properties.get_chunk()
    count = math.prod(-(-size // side) for size, side in zip(read_shape, chunk[-len(read_shape) :], strict=True))
    if count > _MOST_CHUNKS:
        raise DataError(f"{where} is split into {count} chunks per read; at most {_MOST_CHUNKS} are read")
    filters = _filters(dataset)
    unknown = [number for number in filters if number not in _SAME_SIZE | _COMPRESSORS]
    if unknown or sum(number in _COMPRESSORS for number in filters) > 1:
        raise DataError(f"{where} has the HDF5 filters {filters}; one of gzip, LZ4, Zstd, Blosc or LZF is supported")
    largest = _largest(math.prod(chunk) * dataset.get_type().get_size())
    if not filters or dataset.get_storage_size() <= largest:
        return

    def check(stored: h5d.StoreInfo) -> None:
        if stored.size > largest:
            raise DataError(f"{where} has a chunk of {stored.size} bytes, which can have at most {largest}")

    dataset.chunk_iter(check)


def check_all(dataset: h5d.DatasetID, where: str) -> None:
    """Check how far each chunk of a dataset expands.

    Raises:
        DataError: one expands further than the size of a chunk.
    """
    if any(number in _COMPRESSORS for number in _filters(dataset)):
        chunks: list[h5d.StoreInfo] = []
        dataset.chunk_iter(chunks.append)
        for stored in chunks:
            _check_chunk(dataset, stored, where)


def check_row(dataset: h5py.Dataset, row: int) -> None:
    """Check how far the chunks of ``dataset[row]`` expand.

    Raises:
        DataError: one expands further than the size of a chunk.
    """
    chunk, shape = dataset.chunks, dataset.shape
    if chunk is None or not 0 <= row < shape[0] or not _COMPRESSORS.intersection(_filters(dataset.id)):
        return
    others = (range(0, size, side) for size, side in zip(shape[1:], chunk[1:], strict=True))
    for offset in itertools.product((row // chunk[0] * chunk[0],), *others):
        stored = dataset.id.get_chunk_info_by_coord(offset)
        if stored.size:  # else the chunk is absent
            _check_chunk(dataset.id, stored, f"{dataset.file.filename}: {dataset.name}")


def _filters(dataset: h5d.DatasetID) -> list[int]:
    properties = dataset.get_create_plist()
    return [properties.get_filter(number)[0] for number in range(properties.get_nfilters())]


def _largest(declared: int) -> int:
    """Return the most bytes that a filter stores for a chunk: incompressible chunks grow."""
    return declared + declared // 8 + 4096


def _check_chunk(dataset: h5d.DatasetID, stored: h5d.StoreInfo, where: str) -> None:
    properties = dataset.get_create_plist()
    limit = _largest(math.prod(properties.get_chunk()) * dataset.get_type().get_size())
    for number, found in enumerate(_filters(dataset)):
        is_bounded = found == _LZF or (found == _DEFLATE and _DEFLATE_RATIO * stored.size <= _MOST_EXPANDED)
        if found not in _COMPRESSORS or is_bounded or stored.filter_mask >> number & 1:
            continue
        content = bytes(dataset.read_direct_chunk(stored.chunk_offset)[1])
        size = _expanded_size(found, content, limit, properties.get_filter(number)[2])
        if size > limit:
            raise DataError(f"{where} has a chunk that expands to {size} bytes or more; it can have at most {limit}")


def _expanded_size(compressor: int, stored: bytes, limit: int, options: Sequence[int]) -> int:
    """Return the size that the header of a chunk states; without a header, that of its data up to ``limit + 1``."""
    if compressor == _DEFLATE:
        try:
            return len(zlib.decompressobj().decompress(stored, limit + 1))
        except zlib.error:  # HDF5 reports it
            return 0
    if compressor == _BZIP2:
        try:
            return len(bz2.BZ2Decompressor().decompress(stored, limit + 1))
        except OSError:
            return 0
    if compressor == _LZ4 or (compressor == _BITSHUFFLE and len(options) > 4 and options[4]):
        return int.from_bytes(stored[:8], "big")
    if compressor == _SZIP:
        return int.from_bytes(stored[:4], "little")
    if compressor == _BLOSC:
        return int.from_bytes(stored[4:8], "little")
    return _zstd_size(stored) if compressor == _ZSTD else 0


def _zstd_size(stored: bytes) -> int:
    """Return the content size in the header of a Zstd frame (RFC 8878), 0 if it states none."""
    if len(stored) < 6 or stored[:4] != b"\x28\xb5\x2f\xfd":
        return 0
    kind, is_single = stored[4] >> 6, stored[4] >> 5 & 1
    begin = 5 + (not is_single) + (0, 1, 2, 4)[stored[4] & 3]
    length = (is_single, 2, 4, 8)[kind]
    size = int.from_bytes(stored[begin : begin + length], "little")
    return size + 256 if length == 2 else size
