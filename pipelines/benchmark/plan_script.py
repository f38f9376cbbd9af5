"""Planning of an ingest alone, as a process to be measured from outside. It imports what jobs.ingest does.

python -m pipelines.benchmark.plan_script SOURCE OUTPUT
"""

import sys

from pipelines.ingest.plan import IngestOptions
from pipelines.ingest.run import prepare

if __name__ == "__main__":
    prepare(IngestOptions("table", sys.argv[1]), sys.argv[2])
