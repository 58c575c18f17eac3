"""JPEGs of which a crop is decoded alone, beside whole ones; our resize, beside OpenCV's."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from dist_resnet.data import decoders, jpeg
from dist_resnet.data.ffcv import imdecode


def picture(rng, height, width):
    """Smooth colours with edges and noise: chroma that upsampling blends over blocks' borders."""
    small = rng.integers(0, 256, (height // 9 + 2, width // 9 + 2, 3), dtype=np.uint8)
    image = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    image[height // 3 :, width // 2 :] = 255 - image[height // 3 :, width // 2 :]
    return np.clip(image + rng.normal(0, 12, image.shape), 0, 255).astype(np.uint8)


def decoded(content, height, width):
    """By FFCV's decoder."""
    image = np.empty((height, width, 3), np.uint8)
    imdecode(content, image, height, width, height, width, 0, 0, 1, 1, False, False)
    return image


@pytest.mark.parametrize("quality", [50, 90, 95])
@pytest.mark.parametrize("height, width", [(375, 500), (120, 77), (33, 48), (7, 11), (16, 16)])
def test_a_crop_decoded_alone_has_the_bits_of_the_whole(height, width, quality):
    rng = np.random.default_rng(height * quality)
    content = jpeg.encode(picture(rng, height, width), quality)
    whole, smaller = decoded(content, height, width), 0
    theirs = np.asarray(Image.open(io.BytesIO(content.tobytes()))).astype(int)
    assert np.abs(whole - theirs).mean() < 4  # by another inverse DCT, and smoother colours
    for _ in range(60):
        h, w = rng.integers(1, height + 1), rng.integers(1, width + 1)
        top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
        part, y, x, rows, columns = jpeg.cut(content, height, width, top, left, h, w)
        image = decoded(part, rows, columns)
        found = image[top - y : top - y + h, left - x : left - x + w]
        assert np.array_equal(found, whole[top : top + h, left : left + w]), (top, left, h, w)
        smaller += rows * columns < height * width
    assert smaller > 20 or max(height, width) <= 16


def test_what_cannot_be_cut_is_left_whole():
    """No markers, other markers, progressive, grey, cut off, of another size."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(picture(rng, 90, 120))

    def saved(image, **options):
        file = io.BytesIO()
        image.save(file, "JPEG", quality=90, **options)
        return np.frombuffer(file.getvalue(), np.uint8)

    contents = [
        saved(image),
        saved(image, restart_marker_rows=1),
        saved(image, progressive=True),
        saved(image.convert("L"), restart_marker_blocks=1),
        saved(image, restart_marker_blocks=1)[:-300],
    ]
    for content in contents:
        part, y, x, rows, columns = jpeg.cut(content, 90, 120, 10, 10, 70, 90)
        assert part is content or np.array_equal(part, content)
        assert (y, x, rows, columns) == (0, 0, 90, 120)
    content = saved(image, restart_marker_blocks=1)
    assert jpeg.cut(content, 90, 121, 10, 10, 20, 20)[3:] == (90, 121)
    assert jpeg.cut(content, 90, 120, 10, 10, 20, 20)[3:] == (32, 32)


@pytest.mark.parametrize("size", [224, 31, 1])
def test_shrinking_is_opencvs_to_a_rounding(size):
    rng = np.random.default_rng(size)
    image = picture(rng, 375, 500)
    for _ in range(20):
        h, w = rng.integers(size, 376), rng.integers(size, 501)
        top, left = rng.integers(0, 375 - h + 1), rng.integers(0, 500 - w + 1)
        out = np.empty((size, size, 3), np.uint8)
        decoders.shrink(image, top, left, h, w, out)
        crop = np.ascontiguousarray(image[top : top + h, left : left + w])
        theirs = cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA)
        assert np.abs(out.astype(int) - theirs).max() <= 1
