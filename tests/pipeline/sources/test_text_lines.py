from unittest.mock import patch

import pyarrow as pa

from pipeline.sources import lines, open_source

from .reading import in_memory, plan, read, values_and_errors


def test_every_line_that_is_not_blank_is_a_row():
    url = in_memory(b"\xef\xbb\xbffirst\r\n\n \t\r\n  second  \nthi\rrd\x00\n\xff\nlast", ".txt")
    assert values_and_errors(read(plan(2, path=url))) == [
        ({"text": "first"}, None),
        ({"text": "  second  "}, None),
        ({"text": "thi\rrd\x00"}, None),
        (None, "not UTF-8: invalid start byte at byte 0"),
        ({"text": "last"}, None),
    ]
    assert open_source(path=url).columns() == {"text": pa.string()}


def test_a_line_over_the_limit_is_a_bad_row():
    url = in_memory(b"fits\n" + b"x" * 100 + b"\nfits too\n", ".txt")
    with patch.object(lines, "LINE_LIMIT_BYTES", 99):
        rows = read(plan(1, path=url))
    assert [row.error for row in rows] == [None, "line over 64 MiB", None]
