"""Predict the landmarks of a few photos and print them, at once and without Ray. For millions, see infer."""

import contextlib
import csv
import dataclasses
import io
import itertools
import json
import os
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console

from glefld import listing, storage
from glefld.data.photos import is_picture
from glefld.errors import UserError, require_between
from glefld.redaction import public_url
from glefld.schema import MOST_GARMENTS
from glefld.temporary import temporary_file, temporary_space
from jobs.cli import Device, Root, chosen_root, main, naming, suggesting
from jobs.progress import RowBar

if TYPE_CHECKING:
    from glefld.landmarks import Landmarks, Request, Result

Format = Literal["json", "csv", "coco", "parquet"]
#: Formats by the ending of --output.
ENDINGS: dict[str, Format] = {".json": "json", ".csv": "csv", ".parquet": "parquet"}
STDIN = "-"
WHOLE = "whole"
DETECT = "detect"
#: Columns of CSV: a row for each landmark of each garment, or for what is wrong with it.
COLUMNS = (
    *("photo", "garment", "box_x1", "box_y1", "box_x2", "box_y2", "box_score"),
    *("garment_type", "garment_type_score"),
    *("landmark", "x", "y", "score", "visibility", "error"),
)
#: With more photos than this, a terminal shows how far it is.
SHOWN_FROM = 32
#: Rows of Parquet's row groups.
ROW_GROUP = 1024


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the prediction."""

    photos: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="PHOTO ...")]
    """Photos, folders of photos at any depth, or patterns such as 'photos/*.jpg': paths or URLs. - reads one photo
    from stdin."""
    checkpoint: str | None = None
    """Folder of a checkpoint, or of a run (its best one): path, URL or MLflow model (models:/NAME@ALIAS, runs:/ID).
    Or a file of export (.onnx), which answers without PyTorch. Default: $GLEFLD_CHECKPOINT, else the newest run below
    --root."""
    boxes: str = WHOLE
    """whole: each photo is one garment. detect: a detector finds them. Or a CSV or Parquet file with one row per
    garment: uri (the photo as given, or its path within a given folder) and x1, y1, x2, y2 in pixels of the upright
    photo."""
    detector: str | None = None
    """Detector for --boxes detect: checkpoint or run, path, URL or MLflow model, or a file of export. Default:
    $GLEFLD_DETECTOR, else the newest run of a detector below --root."""
    most_garments: int = MOST_GARMENTS
    """With --boxes detect: most garments of a photo, those with the best scores."""
    least_score: float | None = None
    """With --boxes detect: least score of a box. Default: what the detector's training has chosen on its val split."""
    format: Format | None = None
    """json: an array with an object for each garment. csv: a row for each landmark. coco: COCO keypoints. parquet: the
    columns of infer. Default: by the ending of --output, else json."""
    output: str | None = None
    """File to write, path or URL. Default: stdout."""
    show: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder, path or URL, for the photos with the landmarks drawn on them."""
    min_score: Annotated[float, tyro.conf.arg(metavar="S")] = 0.0
    """Leave out landmarks with a lower score, which is the probability that they are within 0.1 of the box."""
    device: Device = "auto"
    root: Root = None


def run(options: Options) -> None:
    """Predict and print. Exit status 1 if no photo could be answered. UserError if an option is wrong."""
    require_between("--min-score", options.min_score, 0, 1)
    require_between("--most-garments", options.most_garments, 1)
    if options.least_score is not None:
        require_between("--least-score", options.least_score, 0, 1)
    if not options.photos:
        raise UserError("no photos: name photos, folders or patterns, or - for stdin")
    format_ = options.format or ENDINGS.get(PurePosixPath(options.output or "").suffix.lower(), "json")
    if options.output:
        storage.require_writable(storage.absolute(options.output), "--output", folder=False)
    elif format_ == "parquet" and sys.stdout.isatty():
        raise UserError("--format parquet is not for a terminal: give --output FILE, or redirect stdout")
    if options.show:
        storage.require_writable(storage.absolute(options.show), "--show", folder=True)
    found = list(find_photos(options.photos))
    boxes = read_boxes(options.boxes, found) if options.boxes not in (WHOLE, DETECT) else None
    given = {"detector": options.detector, "least-score": options.least_score}
    if options.boxes != DETECT and (other := [name for name, value in given.items() if value is not None]):
        raise UserError(f"--{other[0]} is for detected boxes: add --boxes {DETECT}, or leave it out")

    # Before PyTorch, which takes seconds to import, come all mistakes that can be told without it.
    from glefld.landmarks import CHECKPOINT, Landmarks, default_checkpoint, find_checkpoint

    root = storage.absolute(chosen_root(options.root))
    named, why = (options.checkpoint, "") if options.checkpoint else default_checkpoint(root)
    with naming(CHECKPOINT if why and os.environ.get(CHECKPOINT) else "--checkpoint"), meant(named, root):
        url = find_checkpoint(named, root)
    if why:
        print(f"checkpoint {public_url(url)}, {why}", file=sys.stderr)
    finder = choose_detector(options.detector, root) if options.boxes == DETECT else None
    model = Landmarks.load(
        url,
        root=root,
        device=options.device,
        detector=finder,
        most_garments=options.most_garments,
        least_score=options.least_score,
    )
    count = Count(len(found))
    results = count.counted(model.stream(requests(found, boxes)))
    results = (above(result, options.min_score) for result in results)
    if options.show:
        results = shown(results, storage.absolute(options.show))
    with opened(options.output) as file:
        WRITERS[format_](results, model, file)
    print(count.summary(), file=sys.stderr)
    if not count.answered:
        raise SystemExit(1)


def meant(given: str, root: str) -> contextlib.AbstractContextManager[None]:
    """Name the run that was probably meant in the message of a UserError, as the other jobs do."""
    if given.startswith(("models:/", "runs:/")):
        return contextlib.nullcontext()
    return suggesting(storage.absolute(given), None if "/" in given else storage.join(root, "runs"))


def choose_detector(given: str | None, root: str) -> str:
    """Return the URL of the detector's checkpoint, and tell which it is if --detector does not."""
    from glefld.landmarks import find_checkpoint
    from glefld.onnx_model import is_onnx

    why = ""
    if given is None:
        from glefld.detect import default_detector

        with naming(f"--boxes {DETECT}"):
            given, why = default_detector(root)
    with naming("--detector"), meant(given, root):
        url = find_checkpoint(given, root)
        if not is_onnx(url):
            from glefld.detect import require_detector
            from glefld.models import checkpoint

            require_detector(url, checkpoint.read_card(url))
    if why:
        print(f"detector {public_url(url)}, {why}", file=sys.stderr)
    return url


class Found:
    """A photo that was named: where it is, and by which names --boxes may know it."""

    def __init__(self, place: str, *names: str) -> None:
        self.place = place
        self.names = (place, *names)


def find_photos(given: Sequence[str]) -> Iterator[Found]:
    """Yield the photos that are named, of folders and patterns all pictures, sorted. UserError where there is none."""
    if given.count(STDIN) > 1:
        raise UserError("- is given more than once, but there is one stdin")
    for name in given:
        if name == STDIN:
            yield Found(STDIN)
            continue
        place = storage.absolute(name)
        if storage.is_http(place):  # which has no folders
            yield Found(name)
            continue
        storage.require_access(place)
        if any(sign in name for sign in "*?[") and not storage.exists(place):
            yield from _matches(name, place)
        elif storage.is_folder(place):
            yield from _inside(name, place)
        else:  # if it is not there, that is an error of this photo alone
            yield Found(name)


def _matches(name: str, place: str) -> Iterator[Found]:
    fs, path = storage.filesystem(place)
    paths = sorted(found for found in fs.glob(path) if is_picture(found))
    if not paths:
        raise UserError(f"{public_url(name)} matches no picture")
    for found in paths:
        if not storage.is_local(place):
            yield Found(fs.unstrip_protocol(found))
        else:  # as the shell would have expanded it
            yield Found(found if name.startswith(("/", "~", "file:")) else os.path.relpath(found))


def _inside(name: str, place: str) -> Iterator[Found]:
    count = 0
    for table in listing.files(place):
        for inner in table["name"].to_pylist():
            if is_picture(inner):
                count += 1
                yield Found(storage.join(name, inner), inner)
    if not count:
        raise UserError(f"{public_url(name)} holds no picture")


def read_boxes(url: str, photos: Sequence[Found]) -> list[list[list[float] | None]]:
    """Return the boxes of each photo from a file for --boxes, an empty list for photos that it does not name.

    UserError if it cannot be used, or if it names none of the photos; photos that are not there are told on stderr.
    """
    place = storage.absolute(url)
    if not storage.is_file(place):
        raise UserError(
            f"--boxes {public_url(url)}: there is no such file; whole takes each photo as one garment"
        )
    from pipelines.infer.boxes import read_boxes

    table = read_boxes(place)
    by_uri: dict[str, list[list[float] | None]] = defaultdict(list)
    for uri, box in zip(table["uri"].to_pylist(), table["box"].to_pylist(), strict=True):
        by_uri[uri].append(box)
    known = {name for photo in photos for name in photo.names}
    unknown = [uri for uri in by_uri if uri not in known]
    if len(unknown) == len(by_uri):
        raise UserError(
            f"--boxes {public_url(url)} names none of the {len(photos)} photos (its first uri: {unknown[0]!r}, the "
            f"first photo: {photos[0].names[-1]!r})"
        )
    found = [next((by_uri[name] for name in photo.names if name in by_uri), []) for photo in photos]
    without = sum(not boxes for boxes in found)
    for number, words in (
        (len(unknown), "uris of --boxes are not among the photos"),
        (without, "photos have no box in --boxes: they are left out"),
    ):
        if number:
            print(f"{number:,} {words}", file=sys.stderr)
    return found


def requests(
    photos: Sequence[Found], boxes: Sequence[Sequence[Sequence[float] | None]] | None
) -> Iterator["Request"]:
    """Yield what is asked of the model."""
    from glefld.landmarks import Request

    for i, photo in enumerate(photos):
        wanted = [None] if boxes is None else boxes[i]
        if wanted:
            data = sys.stdin.buffer.read() if photo.place == STDIN else photo.place
            yield Request(data, wanted, public_url(photo.place))


class Count:
    """Counts what is answered, and tells errors on stderr; on a terminal also how far it is."""

    def __init__(self, photos: int) -> None:
        self.photos = self.answered = self.garments = self.errors = 0
        self._asked = photos
        self._console = Console(stderr=True)

    def counted(self, results: Iterable["Result"]) -> Iterator["Result"]:
        """Pass the results on."""
        many = self._asked > SHOWN_FROM and self._console.is_terminal
        with RowBar(self._console, "predict") if many else contextlib.nullcontext() as bar:
            for result in results:
                self.photos += 1
                self.answered += bool(result.garments)
                self.garments += len(result.garments)
                self.errors += len(result.errors)
                for error in result.errors:
                    self._console.print(
                        f"{result.name}: {error}", soft_wrap=True, markup=False, highlight=False
                    )
                if bar is not None:
                    bar(self.photos, self._asked)
                yield result

    def summary(self) -> str:
        """Return the counts in words."""
        counts = ((self.photos, "photo"), (self.garments, "garment"), (self.errors, "error"))
        return ", ".join(f"{number:,} {what}{'s' * (number != 1)}" for number, what in counts)


def above(result: "Result", least: float) -> "Result":
    """Return the result without the places of landmarks with a lower score."""
    from glefld.prediction import Prediction

    return dataclasses.replace(
        result,
        answers=tuple(
            answer.without(answer.score < least) if isinstance(answer, Prediction) else answer
            for answer in result.answers
        ),
    )


def shown(results: Iterable["Result"], folder: str) -> Iterator["Result"]:
    """Pass the results on, and write each photo with its landmarks to the folder."""
    for number, result in enumerate(results):
        if result.garments:
            buffer = io.BytesIO()
            result.plot().save(buffer, "JPEG", quality=90)
            stem = "stdin" if result.name == STDIN else PurePosixPath(result.name).stem
            storage.write_bytes(storage.join(folder, f"{number:05d}-{stem}.jpg"), buffer.getvalue())
        yield result


@contextlib.contextmanager
def opened(output: str | None) -> Iterator[IO[bytes]]:
    """Yield the file that --output names, which is there when all is written, or stdout."""
    if output is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with temporary_file() as file:
        yield file
        storage.put_file(file, storage.absolute(output))


def write_json(results: Iterable["Result"], model: "Landmarks", file: IO[bytes]) -> None:
    """Write an array with an object for each garment, as they come."""
    before = b"["
    for result in results:
        for row in result.to_json():
            file.write(before + b"\n" + json.dumps(row, ensure_ascii=False).encode())
            before = b","
    file.write(b"[]\n" if before == b"[" else b"\n]\n")


def write_csv(results: Iterable["Result"], model: "Landmarks", file: IO[bytes]) -> None:
    """Write a row for each landmark, or for each error."""
    text = io.TextIOWrapper(file, "utf-8", newline="")
    rows = csv.DictWriter(text, COLUMNS)
    rows.writeheader()
    for result in results:
        for number, found in enumerate(result.to_json()):
            corners = zip(("box_x1", "box_y1", "box_x2", "box_y2"), found.pop("box", ()), strict=False)
            row = found | dict(corners) | {"garment": number}
            if "error" in found:
                rows.writerow(row)
                continue
            for name, values in row.pop("landmarks").items():
                rows.writerow(row | {"landmark": name} | values)
    text.detach()


def write_coco(results: Iterable["Result"], model: "Landmarks", file: IO[bytes]) -> None:
    """Write one JSON object of images, annotations and categories."""
    from glefld.coco_format import to_coco

    file.write(json.dumps(to_coco(results, model.landmark_set), ensure_ascii=False).encode() + b"\n")


def write_parquet(results: Iterable["Result"], model: "Landmarks", file: IO[bytes]) -> None:
    """Write the columns of infer."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from glefld.prediction import answer_columns, prediction_schema

    name, schema = model.predictor.name, prediction_schema(model.landmark_set)

    def rows() -> Iterator[dict[str, Any]]:
        for result in results:
            for number, (answer, box) in enumerate(zip(result.answers, result.boxes, strict=True)):
                yield {"uri": result.name, "garment": number, "model": name, **answer_columns(answer, box)}

    # Not into the file itself: Parquet's footer wants to know where it is, which a pipe does not tell.
    with temporary_file() as spool, temporary_space():
        with pq.ParquetWriter(spool, schema, compression="zstd") as writer:
            source = rows()
            while group := list(itertools.islice(source, ROW_GROUP)):
                writer.write_batch(pa.RecordBatch.from_pylist(group, schema))
        spool.seek(0)
        shutil.copyfileobj(spool, file)


WRITERS: dict[Format, Callable[[Iterable["Result"], "Landmarks", IO[bytes]], None]] = {
    "json": write_json,
    "csv": write_csv,
    "coco": write_coco,
    "parquet": write_parquet,
}


if __name__ == "__main__":
    main(Options, run)
