"""What a plan says: the photo of each planned row, and the rows that are rejected already."""

import pyarrow.parquet as pq

from glefld.errors import BadPhoto
from pipelines.archives import MEMBERS
from pipelines.ingest.plan import IngestPlan
from pipelines.ingest.shard import planned_rows
from pipelines.members import read_members


def planned_photos(plan: IngestPlan) -> dict[str, bytes | BadPhoto]:
    """The content of each planned row's photo by its name in the lists."""
    data: dict[str, bytes | BadPhoto] = {}
    for shard in plan.shards:
        rows = planned_rows(shard.item)
        assert len(rows) == shard.rows
        for row in range(len(rows)):
            one = rows.slice(row, 1)
            photo = one["sample_id"][0].as_py().partition("/")[2].rpartition("#")[0]
            (data[photo],) = read_members(plan.archives[one["archive"][0].as_py()], one.select(MEMBERS.names))
    return data


def planned_rejects(plan: IngestPlan) -> dict[str, str]:
    """The reason of each row that is rejected already, by its sample id."""
    if plan.rejects_file is None:
        return {}
    rows = pq.read_table(plan.rejects_file).to_pylist()
    return {row["sample_id"]: row["reason"] for row in rows}
