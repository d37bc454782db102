"""Against what pyarrow itself reads back, and by the memory that reading takes."""

import json
import multiprocessing
import os
import pickle
import resource
import shutil
from collections import namedtuple
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyseed.data import parquet
from tinyseed.data.base import Source
from tinyseed.data.sources import open_source
from tinyseed.errors import InputError
from tinyseed.files import cache_folder

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
NAMES = ("cat", "dog", "owl")


def features(**columns):
    return {b"huggingface": json.dumps({"info": {"features": columns}})}


def class_label(*names):
    return {"_type": "ClassLabel", "names": list(names)}


def write(path, columns, metadata=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path, **options)
    return path


def images(contents):
    return pa.array([{"bytes": content, "path": f"{at}.jpg"} for at, content in enumerate(contents)], IMAGE)


def contents(source):
    return [source.read(at) for at in range(len(source))]


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYSEED_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def streams(monkeypatch):
    """Counts how often a Parquet file is really read."""
    seen = []
    original = parquet._stream

    def counted(columns, batches, target):
        seen.append(target)
        return original(columns, batches, target)

    monkeypatch.setattr(parquet, "_stream", counted)
    return seen


def test_the_convention_of_hugging_face(tmp_path):
    data = [b"first", b"second image", b"3"]
    path = write(
        tmp_path / "train.parquet",
        {"image": images(data), "label": [2, 0, 2]},
        features(image={"_type": "Image"}, label=class_label(*NAMES)),
    )
    source = open_source([str(path)])
    assert isinstance(source, Source)
    assert contents(source) == data
    assert source.labels is not None
    assert source.labels.dtype == np.int64
    assert source.labels.tolist() == [2, 0, 2]
    assert source.classes == NAMES
    assert source.name(1) == f"{path}#1"
    int(source.fingerprint, 16)


@given(
    st.lists(st.one_of(st.none(), st.binary(max_size=40)), min_size=1, max_size=60),
    st.integers(1, 20),
    st.integers(1, 9),
    st.sampled_from([pa.binary(), pa.large_binary()]),
    st.sampled_from(["snappy", "none", "zstd"]),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_any_rows_in_any_groups(tmp_path_factory, rows, group, batch, kind, compression, plain):
    folder = tmp_path_factory.mktemp("rows")
    values = pa.array(rows, kind) if plain else pa.StructArray.from_arrays([pa.array(rows, kind)], ["bytes"])
    path = write(folder / "a.parquet", {"image": values}, row_group_size=group, compression=compression)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "_BATCH_ROWS", batch)
        source = open_source([str(path)])
    assert contents(source) == [row or b"" for row in rows]
    assert source.labels is None


@pytest.mark.parametrize(
    ("columns", "metadata"),
    [
        ({"image": pa.array([b"x"])}, None),
        ({"id": [7], "img": images([b"x"])}, None),
        ({"thumb": images([b"wrong"]), "image": images([b"x"])}, None),
        ({"meta": pa.array([{"size": 3}]), "photo": pa.array([{"width": 1, "bytes": b"x"}])}, None),
        (
            {
                "image": pa.array(
                    [{"path": None, "bytes": b"x"}],
                    pa.struct([("path", pa.string()), ("bytes", pa.binary())]),
                )
            },
            None,
        ),
    ],
)
def test_the_image_column_is_found(tmp_path, columns, metadata):
    assert contents(open_source([str(write(tmp_path / "a.parquet", columns, metadata))])) == [b"x"]


def test_without_an_image_column_the_columns_are_listed(tmp_path):
    path = write(tmp_path / "a.parquet", {"text": ["x"], "label": [1]})
    with pytest.raises(InputError, match=r"no image column \(columns: text \(string\), label \(int64\)\)"):
        open_source([str(path)])


@pytest.mark.parametrize(
    ("values", "declared", "labels", "classes"),
    [
        (pa.array([1, 0, None, -1]), NAMES, [1, 0, -1, -1], NAMES),
        (pa.array([1, 0, 1, 2], pa.uint8()), NAMES, [1, 0, 1, 2], NAMES),
        (pa.array([70, 9, None, 9]), None, [1, 0, -1, 0], ("9", "70")),
        (pa.array([5, -1, 3, -7]), None, [3, 1, 2, 0], ("-7", "-1", "3", "5")),
        (pa.array(["dog", None, "cat", "dog"]), None, [1, -1, 0, 1], ("cat", "dog")),
        (pa.array(["dog", "cat", "cat", "dog"]), NAMES, [1, 0, 0, 1], NAMES),
        (pa.array(["dog", "emu", "cat", None]), NAMES, [1, 2, 0, -1], ("cat", "dog", "emu")),
        (pa.array(["dog", "cat", None, "dog"]).dictionary_encode(), None, [1, 0, -1, 1], ("cat", "dog")),
        (pa.array([True, False, True, None]), None, [1, 0, 1, -1], ("False", "True")),
        (pa.array([4, 4, 4, 4]), None, None, ()),
        (pa.array([0.5, 1.5, 2.5, 1.0]), None, None, ()),
        (pa.array([None, None, None, None], pa.int64()), None, None, ()),
    ],
)
def test_labels(tmp_path, values, declared, labels, classes):
    metadata = features(label=class_label(*declared)) if declared else None
    path = write(
        tmp_path / "a.parquet", {"image": images([b"x"] * 4), "label": values}, metadata, row_group_size=3
    )
    source = open_source([str(path)])
    assert source.classes == classes
    assert (None if source.labels is None else source.labels.tolist()) == labels


def test_a_label_column_of_another_name_is_known_by_the_metadata(tmp_path):
    path = write(
        tmp_path / "a.parquet",
        {"img": images([b"x", b"y"]), "fine_label": [1, 0]},
        features(fine_label=class_label("a", "b")),
    )
    source = open_source([str(path)])
    assert source.labels is not None
    assert source.labels.tolist() == [1, 0]


def test_a_label_beyond_the_declared_classes(tmp_path):
    path = write(
        tmp_path / "a.parquet", {"image": images([b"x"]), "label": [3]}, features(label=class_label(*NAMES))
    )
    with pytest.raises(InputError, match="label 3 but declares 3 classes"):
        open_source([str(path)])


@pytest.mark.parametrize(
    "metadata", [b"{", b"[]", b'{"info": null}', b'{"info": {"features": {"label": 3}}}']
)
def test_odd_metadata_is_passed_over(tmp_path, metadata):
    path = write(
        tmp_path / "a.parquet", {"image": images([b"x"] * 2), "label": [0, 1]}, {b"huggingface": metadata}
    )
    assert open_source([str(path)]).classes == ("0", "1")


def test_rows_that_name_a_file_are_read_from_it(tmp_path):
    outside = tmp_path / "elsewhere.jpg"
    outside.write_bytes(b"absolute")
    (tmp_path / "data/sub").mkdir(parents=True)
    (tmp_path / "data/sub/1.jpg").write_bytes(b"relative")
    rows = [
        {"bytes": b"inside", "path": "sub/1.jpg"},
        {"bytes": None, "path": "sub/1.jpg"},
        {"bytes": None, "path": None},
        None,
        {"bytes": None, "path": str(outside)},
        {"bytes": None, "path": "gone.jpg"},
    ]
    path = write(tmp_path / "data/a.parquet", {"image": pa.array(rows, IMAGE)}, row_group_size=4)
    source = open_source([str(path)])
    assert [source.read(at) for at in range(5)] == [b"inside", b"relative", b"", b"", b"absolute"]
    with pytest.raises(FileNotFoundError):
        source.read(5)


def test_several_files_by_pattern_and_by_folder(tmp_path):
    for number, text in enumerate(["a", "b", "c"]):
        name = f"data/train-{number:05}-of-00003.parquet"
        write(tmp_path / name, {"image": images([text.encode()] * 2), "label": [text] * 2})
    (tmp_path / "data/README.md").write_text("about")
    by_folder, by_pattern, above = (
        open_source([str(tmp_path / spec)]) for spec in ("data", "data/train-*.parquet", ".")
    )
    for source in (by_folder, by_pattern, above):
        assert contents(source) == [b"a", b"a", b"b", b"b", b"c", b"c"]
        assert source.classes == ("a", "b", "c")  # one each file: the classes of all count
        assert source.labels is not None
        assert source.labels.tolist() == [0, 0, 1, 1, 2, 2]
        assert source.fingerprint == by_folder.fingerprint


def test_training_and_test_files_are_not_mixed_unasked(tmp_path):
    for split in ("train", "test"):
        write(tmp_path / f"{split}.parquet", {"image": images([split.encode()])})
    with pytest.raises(InputError, match=r"several splits \(test, train\): name one, as .*/test\*\.parquet"):
        open_source([str(tmp_path)])
    assert contents(open_source([str(tmp_path / "test*.parquet")])) == [b"test"]


def test_a_pattern_without_a_match(tmp_path):
    with pytest.raises(InputError, match="matches no file"):
        open_source([str(tmp_path / "*.parquet")])


def test_damaged_files(tmp_path):
    good = write(
        tmp_path / "good.parquet",
        {"image": images([os.urandom(500) for _ in range(50)])},
        compression="snappy",
    )
    content = good.read_bytes()
    for name, data in {
        "empty": b"",
        "text": b"hello",
        "cut": content[:-20],
        "hole": content[:100] + b"\xff" * 3000 + content[3100:],
    }.items():
        path = tmp_path / f"{name}.parquet"
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"cannot be read as Parquet: ") as caught:
            open_source([str(path)])
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").rglob("*.unfinished"))


def test_no_rows(tmp_path):
    with pytest.raises(InputError, match="no rows"):
        open_source([str(write(tmp_path / "a.parquet", {"image": images([])}))])


def test_the_second_opening_reads_nothing(tmp_path, streams):
    path = write(tmp_path / "a.parquet", {"image": images([b"x", b"y"]), "label": [0, 1]})
    first = open_source([str(path)])
    (tmp_path / "link.parquet").symlink_to(path)
    for again in (open_source([str(path)]), open_source([str(tmp_path / "link.parquet")])):
        assert contents(again) == [b"x", b"y"]
        assert again.fingerprint == first.fingerprint
        np.testing.assert_array_equal(again.labels, first.labels)
    assert len(streams) == 1


def test_a_changed_file_is_read_anew_and_the_old_copy_goes(tmp_path, streams):
    path = write(tmp_path / "a.parquet", {"image": images([b"x" * 1000])})
    first = open_source([str(path)])
    write(path, {"image": images([b"y" * 10])})
    os.utime(path, (1, 1))
    second = open_source([str(path)])
    assert contents(second) == [b"y" * 10]
    assert first.fingerprint != second.fingerprint
    assert len(streams) == 2
    assert sum(file.stat().st_size for file in cache_folder().rglob("*.images")) == 10


@pytest.mark.parametrize("damage", ["images cut", "images gone", "rows cut", "rows empty"])
def test_a_damaged_copy_is_made_anew(tmp_path, damage, streams):
    path = write(tmp_path / "a.parquet", {"image": images([b"first", b"second"])})
    open_source([str(path)]).read(0)
    (copy,) = cache_folder().rglob(f"*.{damage.split()[0]}")
    if damage.endswith("gone"):
        copy.unlink()
    else:
        copy.write_bytes(b"" if damage.endswith("empty") else copy.read_bytes()[:-3])
    assert contents(open_source([str(path)])) == [b"first", b"second"]
    assert len(streams) == 2


def test_too_small_a_disk_is_told_before(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 9, 1))
    path = write(tmp_path / "a.parquet", {"image": images([b"x" * 1000])})
    with pytest.raises(InputError, match="set TINYSEED_CACHE"):
        open_source([str(path)])


def test_pickles_small_and_workers_read_the_same(tmp_path):
    path = write(
        tmp_path / "a.parquet",
        {"image": images([b"x%d" % at for at in range(3000)]), "label": [0, 1, 2] * 1000},
    )
    source = open_source([str(path)])
    assert len(pickle.dumps(source)) < 1000
    again = pickle.loads(pickle.dumps(source))
    assert contents(again) == contents(source)
    np.testing.assert_array_equal(again.labels, source.labels)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(source.read, 2999).result() == b"x2999"


@pytest.mark.parametrize("index", [-1, 2])
def test_no_index_outside(tmp_path, index):
    source = open_source([str(write(tmp_path / "a.parquet", {"image": images([b"x", b"y"])}))])
    with pytest.raises(IndexError):
        source.read(index)


def test_more_files_than_a_process_may_hold_open(tmp_path):
    shard = write(tmp_path / "in/0000.parquet", {"image": images([b"x"])})
    for number in range(1, 300):
        shutil.copy(shard, tmp_path / f"in/{number:04}.parquet")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    source = open_source([str(tmp_path / "in")])
    held = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (held + 3, hard))
    try:
        assert contents(source) == [b"x"] * 300
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_memory_is_bounded(tmp_path, monkeypatch):
    # Three row groups of 48 MB each, in pages of 0.8 MB (a page is the least that can be read).
    chunk = pa.array([os.urandom(1000) * 100 for _ in range(480)], pa.binary())
    schema = pa.schema([("image", pa.binary())])
    path = tmp_path / "big.parquet"
    with pq.ParquetWriter(
        path, schema, compression="none", use_dictionary=False, write_batch_size=8
    ) as writer:
        for _ in range(3):
            writer.write_table(pa.table({"image": chunk}, schema))
    del chunk
    monkeypatch.setattr(parquet, "_BATCH_BYTES", 2**20)
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    try:
        source = open_source([str(path)])
    finally:
        pa.set_memory_pool(before)
    assert len(source) == 1440
    assert len(source.read(1439)) == 100_000
    assert 0 < pool.max_memory() < 16 * 2**20


def test_equals_pyarrow_on_real_files(shared_data):
    path = shared_data / "clothing160-cc0/test.parquet"
    source = open_source([str(path)])
    table = pq.read_table(path)
    assert contents(source) == table["image"].combine_chunks().field("bytes").to_pylist()
    assert source.labels is not None
    assert source.labels.tolist() == table["label"].to_pylist()
    assert len(source.classes) == 17
