"""The Fashion Landmark Detection benchmark: one garment a photo, three joined lists, a variation type."""

from glefld.datasets.lists import Annotations, ListFiles, read_benchmark
from glefld.schema import FASHION8, Labels

FOLDERS = ("Anno", "")


def read(lists: ListFiles) -> Annotations:
    """The benchmark's rows; UserError names a missing list or the line that cannot be read."""
    return Annotations(read_benchmark("fld", lists, FASHION8, FOLDERS), Labels(FASHION8))
