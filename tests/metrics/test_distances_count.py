"""How many images a distance compares."""

from metrics.statistics import compared


def test_kernel_distances_compare_the_first_ten_thousand() -> None:
    assert compared("kid", 50_000) == compared("kd", 10_000) == 10_000
    assert compared("fid", 50_000) == 50_000 and compared("kid", 12) == 12
