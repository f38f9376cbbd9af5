"""The Fashion Landmark Detection benchmark (FLD): one garment per photo, three lists, a variation type.

Liu et al., "Fashion Landmark Detection in the Wild", ECCV 2016 (https://arxiv.org/abs/1608.03049).
"""

from glefld.datasets.lists import Annotations, ListFiles, read_benchmark
from glefld.schema import FASHION8, Labels

FOLDERS = ("Anno", "")


def read(lists: ListFiles) -> Annotations:
    """Read the benchmark's rows; UserError names the missing list or the line that cannot be read."""
    return Annotations(read_benchmark("fld", lists, FASHION8, FOLDERS), Labels(FASHION8))
