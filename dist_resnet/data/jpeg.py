"""JPEGs of which a crop can be decoded alone: a restart marker after every MCU (16 x 16 pixels,
where colour has half the resolution) makes MCUs independent of each other, so that those of a
rectangle are a JPEG again, once its header says how large it is. ITU-T T.81, B.2 and F.1.2.3.

The markers cost 3 % of a file of 90 KB, and any decoder reads it."""

import io

import numba
import numpy as np
from PIL import Image

SOF0, SOS, EOI, DRI, RST0 = 0xC0, 0xDA, 0xD9, 0xDD, 0xD0
_LOW, _HIGH = np.uint64(0x0101010101010101), np.uint64(0x8080808080808080)


def encode(image: np.ndarray, quality: int) -> np.ndarray:
    """uint8 (height, width, 3) -> uint8 (bytes,), baseline, 4:2:0."""
    file = io.BytesIO()
    Image.fromarray(image).save(
        file, "JPEG", quality=quality, subsampling="4:2:0", restart_marker_blocks=1
    )
    return np.frombuffer(file.getbuffer(), np.uint8)


@numba.njit(nogil=True, cache=True)
def cut(content, height, width, top, left, h, w):
    """(JPEG, top, left, height, width): the smallest JPEG in which the crop's pixels are those of
    the whole image, bit for bit, and the place of it there.

    content: uint8 (bytes,), a JPEG of height x width. One without a marker after every MCU (or
    progressive, grey, not whole) is returned as it is."""
    start, frame, mcu_height, mcu_width = _header(content, height, width)
    if start == 0:
        return content, 0, 0, height, width
    first_row, past_row = _mcus(top, h, height, mcu_height)
    first, past = _mcus(left, w, width, mcu_width)
    across, down = -(-width // mcu_width), -(-height // mcu_height)
    if past_row - first_row == down and past - first == across:
        return content, 0, 0, height, width
    ends = _ends(content, start, (past_row - 1) * across + past, across * down)
    if len(ends) == 0:
        return content, 0, 0, height, width
    y, x = first_row * mcu_height, first * mcu_width
    rows, columns = min(past_row * mcu_height, height) - y, min(past * mcu_width, width) - x
    part = np.empty(len(content), np.uint8)
    _copy(content, 0, start, part, 0)
    part[frame + 5], part[frame + 6] = rows >> 8, rows & 255
    part[frame + 7], part[frame + 8] = columns >> 8, columns & 255
    size = start
    for row in range(first_row, past_row):
        number = (row - first_row) * (past - first)
        begin = row * across + first
        size = _append(content, start, ends, begin, begin + past - first, part, size, number)
    part[size - 1] = EOI
    return part[:size], y, x, rows, columns


@numba.njit(nogil=True, cache=True)
def _header(content, height, width):
    """(where the coded data begins, where the frame header is, height and width of an MCU); zeros
    for a JPEG that cannot be cut."""
    frame, mcu_height, mcu_width, interval, p = 0, 0, 0, 0, 2
    while p + 18 < len(content) and content[p] == 0xFF:
        marker = content[p + 1]
        if marker == SOF0 and content[p + 9] == 3:
            frame, sampling = p, int(content[p + 11])
            mcu_height, mcu_width = 8 * (sampling & 15), 8 * (sampling >> 4)
            if content[p + 14] != 0x11 or content[p + 17] != 0x11:  # of the colours
                break
        elif marker == DRI:
            interval = _word(content, p + 4)
        p += 2 + _word(content, p + 2)
        if marker == SOS:
            sized = frame and _word(content, frame + 5) == height
            if sized and _word(content, frame + 7) == width and interval == 1:
                return p, frame, mcu_height, mcu_width
            break
    return 0, 0, 0, 0


@numba.njit(nogil=True, cache=True)
def _word(content, p):
    return np.int64(content[p]) << 8 | np.int64(content[p + 1])


@numba.njit(nogil=True, cache=True)
def _mcus(begin, length, size, mcu):
    """The first and the one past the last that the pixels need: a decoder blends the colour of
    neighbours in."""
    return max(begin - 1, 0) // mcu, -(-min(begin + length + 1, size) // mcu)


@numba.njit(nogil=True, cache=True)
def _ends(content, start, count, total):
    """Where the data of each of the first `count` of `total` MCUs ends, at its marker: int64
    (count,); of none where a marker is not the one that must come."""
    ends, found = np.empty(count, np.int64), 0
    words = content[start : start + (len(content) - start - 1) // 8 * 8].view(np.uint64)
    for i in range(len(words) + 1):
        p, past = start + 8 * i, start + 8 * i + 8
        if i < len(words):
            clear = ~words[i]
            if not (clear - _LOW) & ~clear & _HIGH:  # no byte is 0xFF
                continue
        for j in range(np.uint64(p), np.uint64(min(past, len(content) - 1))):
            if content[j] == 0xFF and content[j + np.uint64(1)] != 0:
                due = EOI if found == total - 1 else RST0 + (found & 7)
                if content[j + np.uint64(1)] != due:
                    return ends[:0]
                ends[found] = j
                found += 1
                if found == count:
                    return ends
    return ends[:0]


@numba.njit(nogil=True, cache=True)
def _append(content, start, ends, first, past, part, size, number):
    """MCUs [first, past), which lie one after the other, with markers counted from `number` on.
    Returns the new size."""
    begin = start if first == 0 else ends[first - 1] + 2
    _copy(content, begin, ends[past - 1] + 2, part, size)
    for i in range(first, past):
        part[size + ends[i] - begin + 1] = RST0 + ((number + i - first) & 7)
    return size + ends[past - 1] + 2 - begin


@numba.njit(nogil=True, cache=True)
def _copy(content, begin, past, part, to):
    source, target = content[begin:past], part[to : to + past - begin]
    for i in range(len(source)):
        target[i] = source[i]
