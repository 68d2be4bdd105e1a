"""Tables of metrics: digits, intervals, and numbers of images."""

import math

import pytest

from metrics.report import metrics_rows, shown, units
from runtime.tables import table


def test_a_table_shows_values_with_the_digits_they_deserve():
    cell = {"psnr": {"mean": 23.0}, "ssim": {"mean": 0.23}, "consistency": {"mean": 1.5e-13},
            "fid": {"mean": math.nan, "count": 256}, "evaluations": 63,
            "seconds_per_image": 2.0}  # fmt: skip
    text = table(*metrics_rows({"blur": {"a": cell}}, ["psnr", "ssim", "consistency", "fid"]))
    headers = [word.strip() for word in text.splitlines()[0].strip("|").split("|")]
    assert headers == [
        "degradation", "method", "PSNR (dB)", "SSIM", "consistency", "FID of 256 images", "NFE",
        "s/image",
    ]  # fmt: skip
    for word in ("23.00", "0.230", "1.50e-13", "nan", "| 63 ", "2.000"):
        assert word in text
    compiled = table(*metrics_rows({"blur": {"a": cell}}, ["psnr"], compiled=True))
    assert compiled.splitlines()[0].endswith("| s/image (compiling included) |")
    assert units(True)["seconds_per_image"] == "s (compiling included)"


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [("fid", 0.0153, "0.0153"), ("fid", 123.456, "123.46"), ("fid", 0.4, "0.400"),
     ("ssim", 0.98765, "0.988"), ("psnr", 0.0, "0.00"), ("psnr", 0.00123, "1.23e-03"),
     ("psnr", math.inf, "inf")],
)  # fmt: skip
def test_small_values_keep_three_digits(metric, value, text):
    assert shown(metric, value) == text


def test_means_show_their_intervals_and_what_they_leave_out():
    psnr = {"mean": 31.0, "low": 30.124, "high": 32.0, "count": 5, "infinite": 2}
    cell = {"psnr": psnr, "fd": {"mean": 3.0, "count": 7}, "evaluations": 1,
            "seconds_per_image": 2.0}  # fmt: skip
    metrics = ["psnr", "fd"]
    assert "| 31.00 (2 more identical) |" in table(*metrics_rows({"blur": {"a": cell}}, metrics))
    text = table(*metrics_rows({"blur": {"a": cell}}, metrics, intervals=True))
    assert "| 31.00 [30.12, 32.00] (2 more identical) |" in text
    assert "| 3.00 " in text
