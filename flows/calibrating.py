"""Asks a person about pairs of a run, one after the other, and finds the eps that fits."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from importlib import resources
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from flows.local_server import LocalServer, read_body
from flows.serving import original_endpoint
from tasks import blas, storage
from tasks.boundary_pairs import draw_pairs, find_boundary_pairs
from tasks.calibration import distance_edges
from tasks.calibrations import (
    Answer,
    Calibration,
    CalibrationResult,
    Partition,
    Said,
    calibration_url,
    comparable_items,
    conclude,
    profile_lines,
    read_calibration,
    result_rows,
    write_calibration,
)
from tasks.cells import open_features
from tasks.comparisons import Items
from tasks.errors import ArtifactError, DedupError
from tasks.manifests import LoadedManifest
from tasks.originals import Originals
from tasks.partitions import partitioned_by
from tasks.paths import relative_to
from tasks.rendering import render
from tasks.schemas import IMAGES

SEED = 0

_MAX_ANSWER_BYTES = 65_536
_STATIC = {
    "calibrate.css": "text/css; charset=utf-8",
    "calibrate.js": "text/javascript; charset=utf-8",
}


class AskedPair(NamedTuple):
    """Two images that a person is asked about."""

    a: str
    b: str
    partition: str
    distance: float


class Interview:
    """Asks about one pair after the other, and keeps each answer as it comes."""

    def __init__(
        self,
        calibration: Calibration,
        pairs: Iterator[AskedPair],
        *,
        num_pairs: int,
        is_shown: Callable[[str], bool],
        keep: Callable[[Calibration], None],
    ) -> None:
        """Go on where the answers end.

        Args:
            calibration: What has been answered already.
            pairs: What to ask about, in order.
            num_pairs: After how many answers it ends.
            is_shown: Tells whether there is a picture of an image; pairs without are left out.
            keep: Saves the answers.
        """
        self.calibration = calibration
        self.num_pairs = num_pairs
        self._pairs, self._is_shown, self._keep = pairs, is_shown, keep
        self._waiting: deque[AskedPair] = deque()
        self._answered = {(answer.a, answer.b) for answer in calibration.answers}
        self._one_at_a_time = threading.RLock()

    def questions(self) -> list[AskedPair]:
        """The pair that is to be answered next and the one after it; nothing at the end."""
        with self._one_at_a_time:
            num_left = self.num_pairs - len(self.calibration.answers)
            while len(self._waiting) < min(2, num_left):
                pair = self._next()
                if pair is None:
                    break
                self._waiting.append(pair)
            return list(self._waiting)[: max(0, num_left)][:2]

    def answer(self, a: str, b: str, said: Said) -> bool:
        """Take the answer to the present question; False when it is to another one."""
        with self._one_at_a_time:
            for question in self.questions()[:1]:
                if (a, b) == (question.a, question.b):
                    answer = Answer(**question._asdict(), said=said)
                    self._change(self.calibration.with_answer(answer))
                    self._waiting.popleft()
                    return True
            return False

    def take_back(self) -> None:
        """Ask the last pair again."""
        with self._one_at_a_time:
            if self.calibration.answers:
                last = self.calibration.answers[-1]
                self._change(self.calibration.without_last_answer())
                self._waiting.appendleft(
                    AskedPair(**last.model_dump(include={"a", "b", "partition", "distance"}))
                )

    def _change(self, calibration: Calibration) -> None:
        self._keep(calibration)
        self.calibration = calibration

    def _next(self) -> AskedPair | None:
        for pair in self._pairs:
            if (pair.a, pair.b) in self._answered:
                continue
            if self._is_shown(pair.a) and self._is_shown(pair.b):
                return pair
        return None


def prepare(manifest: LoadedManifest, num_pairs: int, originals: Originals) -> Interview:
    """Find what to ask about a run, and what was answered earlier.

    Raises:
        ArtifactError: The run has no pair around its eps, or its answers are damaged, or every
            camera has an eps of its own.
    """
    run_url = manifest.url.rpartition("/")[0]
    images = storage.read_table(
        storage.join(run_url, "images.parquet"), IMAGES, ["item_id", "url", "camera", "stands_on"]
    )
    items_of = without_own_eps(dict(comparable_items(images)), manifest)
    features = open_features(storage.join(run_url, "features.npy"))
    eps = manifest.summary.eps
    is_of_scenes = partitioned_by(manifest.metadata).view.compare == "scene"
    with blas.one_thread():
        found = find_boundary_pairs(
            features, list(items_of.values()), distance_edges(eps), seed=SEED
        )
    if not len(found.item_a):
        raise ArtifactError(
            f"expected pairs of images about {eps or 0.05:g} apart, found none: {run_url}"
        )
    names = list(items_of)
    num_images = np.array([len(items) for items in items_of.values()])
    url_of = dict(zip(images["item_id"].to_pylist(), images["url"].to_pylist(), strict=True))
    pairs = (
        AskedPair(
            url_of[int(found.item_a[at])],
            url_of[int(found.item_b[at])],
            names[int(found.partitions[at])],
            float(found.distances[at]),
        )
        for at in draw_pairs(found, num_images)
    )
    fresh = Calibration(
        run_id=manifest.summary.run_id,
        eps=eps,
        setting="scene_eps" if is_of_scenes else "eps",
        partitions=tuple(
            Partition(name=name, num_images=int(num), counts=tuple(np.round(counts, 1).tolist()))
            for name, num, counts in zip(names, num_images, found.counts, strict=True)
        ),
    )
    url = calibration_url(manifest.url)
    return Interview(
        _with_earlier_answers(fresh, url),
        pairs,
        num_pairs=num_pairs,
        is_shown=lambda image_url: _is_shown(originals, image_url),
        keep=lambda calibration: write_calibration(url, calibration),
    )


def without_own_eps(items_of: dict[str, Items], manifest: LoadedManifest) -> dict[str, Items]:
    """Leave out the partitions whose eps is their camera's: no answer about it helps the others."""
    said = partitioned_by(manifest.metadata)
    if not said.cameras:
        return items_of
    config = said.as_config()
    asked = {n: items for n, items in items_of.items() if config.of_partition(n).eps == config.eps}
    if items_of and not asked:
        raise ArtifactError(
            "expected partitions that the eps of the run holds for, but all cameras have one of "
            f"their own: {manifest.url}"
        )
    return asked


def _with_earlier_answers(fresh: Calibration, url: str) -> Calibration:
    try:
        earlier = read_calibration(url)
    except FileNotFoundError:
        return fresh
    if earlier.run_id != fresh.run_id:
        raise ArtifactError(
            f"expected answers about run {fresh.run_id}, found {earlier.run_id!r}: {url}"
        )
    return fresh.model_copy(update={"answers": earlier.answers})


def _is_shown(originals: Originals, url: str) -> bool:
    try:
        originals.show(url)
    except (DedupError, FileNotFoundError):
        return False
    return True


def calibration_server(
    interview: Interview,
    manifest: LoadedManifest,
    originals: Originals,
    *,
    precision: float,
    port: int,
) -> LocalServer:
    """Make the server of the questions; it stops when the person is done.

    Args:
        interview: What is asked.
        manifest: Of the run.
        originals: Where the pictures come from.
        precision: Wanted share of pairs that show the same.
        port: Where, 0 for a free one.
    """
    folder = manifest.summary.source_url

    def state() -> Response:
        questions = [_as_shown(pair, folder) for pair in interview.questions()]
        result = None if questions else conclude(interview.calibration, precision)
        return JSONResponse(
            {
                "num_answers": len(interview.calibration.answers),
                "num_pairs": interview.num_pairs,
                "questions": questions,
                "result": None if result is None else _result_as_shown(result),
            }
        )

    async def answer(request: Request) -> Response:
        said = _Reply.parse(await read_body(request, _MAX_ANSWER_BYTES))
        if said.said == "back":
            await run_in_threadpool(interview.take_back)
        elif said.said == "done":
            server.stop()
        else:
            # An answer to another question is a key pressed twice; the state says what is asked.
            await run_in_threadpool(interview.answer, said.a, said.b, said.said)
        return await run_in_threadpool(state)

    def page(_: Request) -> Response:
        html = render(
            "calibrate.html.j2",
            run_id=manifest.summary.run_id,
            num_pairs=interview.num_pairs,
        )
        return Response(html, media_type="text/html")

    server = LocalServer(
        [
            Route("/", page),
            Route("/state", lambda _: state()),
            Route("/answer", answer, methods=["PUT"]),
            Route("/original", original_endpoint(originals)),
            *[Route(f"/{name}", _static_endpoint(name)) for name in _STATIC],
        ],
        port,
    )
    return server


class _Reply(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    said: Said | Literal["back", "done"]
    a: str = ""
    b: str = ""

    @classmethod
    def parse(cls, content: bytes) -> "_Reply":
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            raise HTTPException(422, f"expected an answer, found something else: {error}") from None


def _as_shown(pair: AskedPair, folder: str) -> dict[str, Any]:
    # Without the distance: it would tell what answer is expected.
    return {"a": _side(pair.a, folder), "b": _side(pair.b, folder)}


def _side(url: str, folder: str) -> dict[str, str]:
    return {
        "url": url,
        "path": relative_to(url, folder),
        "src": f"/original?url={quote(url, safe='')}",
    }


def _result_as_shown(result: CalibrationResult) -> dict[str, Any]:
    return {"rows": result_rows(result), "profile": profile_lines(result)}


def _static_endpoint(name: str) -> Callable[[Request], Response]:
    content = resources.files("tasks").joinpath("templates", name).read_bytes()
    return lambda _: Response(content, media_type=_STATIC[name])
