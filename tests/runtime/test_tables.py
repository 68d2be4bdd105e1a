"""Tables are readable as text and valid Markdown."""

import pytest

from runtime.tables import table


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
    with pytest.raises(ValueError, match="2 values"):
        table(["a", "b"], [["x"]])
