"""The photographs that come with the package are what their note says."""

import hashlib

import numpy as np
import pytest

from tinyseed.assets import clothing
from tinyseed.data.decode import decode
from tinyseed.data.sources import open_source

PHOTOS = {"train": 4061, "test": 1035}


@pytest.mark.parametrize("split", PHOTOS)
def test_each_photo_is_small_labelled_and_without_metadata(split):
    source = open_source([str(clothing(split))])
    assert len(source) == PHOTOS[split]
    assert len(source.classes) == 17
    assert source.labels is not None
    assert set(source.labels.tolist()) == set(range(17))
    for at in range(0, len(source), 20):
        image = decode(source.read(at))
        assert min(image.size) == 80
        assert not {"exif", "xmp", "icc_profile", "comment", "photoshop"} & image.info.keys()


def test_no_file_stands_twice_and_all_is_small():
    sources = [open_source([str(clothing(split))]) for split in ("train", "test")]
    files = [source.read(at) for source in sources for at in range(len(source))]
    assert len(set(files)) == len(files)
    assert sum(clothing(split).stat().st_size for split in ("train", "test")) <= 12_000_000
    assert sources[0].classes == sources[1].classes


def test_licence_and_note_stand_beside():
    folder = clothing("train").parent
    assert "CC0 1.0 Universal" in (folder / "LICENSE").read_text()
    note = (folder / "SOURCE.md").read_text()
    for split in ("train", "test"):
        assert hashlib.sha256(clothing(split).read_bytes()).hexdigest() in note


def test_made_from_the_original_photos(shared_data):
    originals = open_source([str(shared_data / "clothing160-cc0/test.parquet")])
    ours = open_source([str(clothing("test"))])
    np.testing.assert_array_equal(ours.labels, originals.labels)
    for at in range(0, len(ours), 100):
        small = decode(ours.read(at))
        expected = np.asarray(decode(originals.read(at)).resize(small.size), np.float64)
        assert np.abs(np.asarray(small) - expected).mean() < 8
