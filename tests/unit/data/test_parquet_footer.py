"""The footer of parquet files, against pyarrow's own reading of it."""

import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from siri.data.parquet_footer import Chunk, chunks
from siri.data.problems import load_problems
from siri.errors import InputError

ROWS = [
    {"problem": f"{i} + 1", "answer": str(i + 1), "parts": [{"text": "x" * i, "n": i}] * (i % 3), "score": i / 7}
    for i in range(100)
]


def by_pyarrow(path) -> list[Chunk]:
    about = pq.read_metadata(path)
    groups = [about.row_group(i) for i in range(about.num_row_groups)]
    columns = [group.column(i) for group in groups for i in range(group.num_columns)]
    return [Chunk(each.path_in_schema, each.num_values, each.total_uncompressed_size) for each in columns]


@pytest.mark.parametrize("group", [7, 100])
@pytest.mark.parametrize("version", ["1.0", "2.6"])
@pytest.mark.parametrize("more", [{}, {"write_page_index": True}, {"use_dictionary": False, "write_statistics": False}])
def test_columns_are_what_pyarrow_says(tmp_path, group, version, more):
    path = tmp_path / "set.parquet"
    schema = pa.Table.from_pylist(ROWS).schema.with_metadata({"k": "v" * 300})
    pq.write_table(pa.Table.from_pylist(ROWS, schema), path, row_group_size=group, version=version, **more)
    assert chunks(path) == by_pyarrow(path)
    assert len(chunks(path)) == 5 * -(-100 // group)


def test_many_columns_and_none(tmp_path):
    path = tmp_path / "set.parquet"
    pq.write_table(pa.table({f"column {i}": pa.array([i], pa.decimal128(9, 2)) for i in range(40)}), path)
    assert chunks(path) == by_pyarrow(path)
    pq.write_table(pa.table({"a": pa.array([], pa.int64())}), path)
    assert chunks(path) == by_pyarrow(path)


def test_footers_that_are_damaged_end_in_words(tmp_path):
    path = tmp_path / "set.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    good, draw = path.read_bytes(), random.Random(0)
    size = int.from_bytes(good[-8:-4], "little")
    ends = set()
    for _ in range(3000):
        data = bytearray(good)
        for _ in range(draw.randint(1, 3)):
            data[len(data) - 8 - draw.randint(1, size)] = draw.choice((0, 255, draw.randrange(256)))
        path.write_bytes(data)
        try:
            assert all(isinstance(chunk, Chunk) for chunk in chunks(path))
            ends.add("read")
        except ValueError as error:
            ends.add(str(error).partition("(")[0])
    assert len(ends) >= 3, ends


@pytest.mark.parametrize(
    "footer",
    [
        b"",
        b"\x00",
        b"\x19" * 4000,  # lists in lists
        b"\x1c" * 4000,  # structs in structs
        b"\x49\xfc\xff\xff\xff\xff\x0f",  # four billion structs in no bytes
        b"\x16" + b"\xff" * 20,  # an integer without an end
        b"\x1f\x00",  # a type that there is not
    ],
)
def test_made_up_footers(tmp_path, footer):
    path = tmp_path / "set.parquet"
    path.write_bytes(b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    try:
        assert chunks(path) == []
    except ValueError as error:
        assert "footer" in str(error)
    with pytest.raises(InputError, match="unreadable parquet"):
        load_problems(path)


def test_no_footer(tmp_path):
    path = tmp_path / "set.parquet"
    for data in (b"", b"PAR1", b"PAR1" * 3, b"\xff\xff\xff\xffPAR1"):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="footer"):
            chunks(path)
