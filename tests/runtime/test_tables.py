"""Tables are readable as text and valid Markdown."""

import pytest

from runtime.tables import fixed, table


def test_table_is_aligned_markdown():
    text = table(
        ["method", "PSNR", "steps"],
        [["InvFusion", 23.45678, 63], ["DPS", None, 1000], ["a", 0.00123456, None]],
    )
    assert text.splitlines() == [
        "| method    |     PSNR | steps |",
        "| --------- | -------: | ----: |",
        "| InvFusion |    23.46 |    63 |",
        "| DPS       |        - |  1000 |",
        "| a         | 0.001235 |     - |",
    ]


def test_table_without_rows_and_with_ragged_rows():
    assert table(["a", "b"], []).splitlines()[0] == "|   a |   b |"
    with pytest.raises(ValueError, match="shorter"):
        table(["a", "b"], [["x"]])


def test_no_number_but_zero_is_shown_as_zero():
    assert [fixed(value) for value in (0.0, 12.3456, 0.0049, -0.001)] == [
        "0.00",
        "12.35",
        "5e-03",
        "-1e-03",
    ]
    assert fixed(0.0004) == "4e-04" and fixed(0.0004, 4) == "0.0004"
