import re

import pytest

from edgecompress.report.tables import in_bytes, in_ratio
from edgecompress.report.terminal import print_report


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_234_567, "1,234.6 kB"), (12_345_678, "12.3 MB")],
)
def test_sizes_count_in_thousands(size: int, text: str) -> None:
    assert in_bytes(size) == text


def test_ratios_need_a_base() -> None:
    assert in_ratio(200, 50) == "0.25 x"
    assert in_ratio(None, 50) == in_ratio(0, 50) == in_ratio(5, None) == ""


def test_names_with_brackets_are_printed_as_they_are(digits_cnn, tmp_path, capsys) -> None:
    """Rich reads [square brackets] as style; a user's file may be called so."""
    from edgecompress import convert

    folder = tmp_path / "[bold]out"
    print_report(convert(digits_cnn[0], "host", data=digits_cnn[1], output=folder, benchmark=False))
    text = capsys.readouterr().out
    assert "[bold]out" in text
    assert re.search(r"accuracy \(top-1\)\s+\d+\.\d\d%", text)
