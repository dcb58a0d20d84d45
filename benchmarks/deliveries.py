"""What cameras deliver night after night, and what goes wrong with it: late, twice, edited, broken.

The frames of each camera are cut into nights in their order. Everything else is drawn with a fixed
seed, so the same frames give the same nights.
"""

import io
import os
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

CAMERAS = (
    "intel_car_detection/frames",
    "cdnet_highway/input",
    "bgslibrary_video02/frames",
    "highway_overpass_frames/frames",
    "intel_bottle/frames",
)
"""Folders of five fixed cameras: roads and a table top."""

SUFFIXES = {".jpg", ".jpeg", ".png"}


@dataclass(frozen=True)
class Delivery:
    """One file of a night."""

    path: str
    """Below the night's folder: camera and name."""
    content: bytes
    captured_at: datetime
    kind: str
    """`new`, `late`, `copy`, `again`, `edited` or `broken`."""


def frames_of(
    data: Path, cameras: Sequence[str] = CAMERAS, *, at_most: int | None = None
) -> dict[str, list[Path]]:
    """The frames of each camera in their order, by the camera's name.

    Args:
        data: Folder that the cameras lie in.
        cameras: Folders of frames below it.
        at_most: Frames of one camera, spread evenly over all it has; by default all.
    """
    frames = {}
    for camera in cameras:
        found = sorted(path for path in (data / camera).iterdir() if path.suffix in SUFFIXES)
        step = max(1.0, len(found) / (at_most or len(found)))
        frames[camera.partition("/")[0]] = [
            found[int(number * step)] for number in range(int(len(found) / step))
        ]
    return frames


def plan_deliveries(
    frames: Mapping[str, Sequence[Path]], days: Sequence[date], seed: int = 0
) -> list[list[Delivery]]:
    """Say what each night delivers.

    Args:
        frames: Frames of each camera in their order.
        days: The day of each night.
        seed: Of all that is drawn.
    """
    rng = random.Random(seed)
    nights = plan_frames(frames, days)
    delivered: list[Delivery] = []
    for night, own in enumerate(nights):
        if night + 1 < len(nights) and len(own) > 1:
            late = own.pop(rng.randrange(len(own)))
            arrives = min(night + rng.randint(1, 3), len(nights) - 1)
            nights[arrives].append(replace(late, kind="late"))
        delivered += [one for one in own if one.kind in ("new", "late")]
        earlier = [one for one in delivered if one not in own]
        own += [renamed(one, "copy of ", "copy") for one in rng.sample(own, min(2, len(own)))]
        own += [replace(one, kind="again") for one in rng.sample(earlier, min(2, len(earlier)))]
        own += [edited(one, rng, number) for number, one in enumerate(rng.choices(delivered, k=2))]
        if night % 5 == 3:
            own.append(broken(own[0]))
        own.sort(key=lambda one: one.path)
    return nights


def plan_frames(frames: Mapping[str, Sequence[Path]], days: Sequence[date]) -> list[list[Delivery]]:
    """Cut the frames of each camera into nights, in their order and one a minute."""
    nights: list[list[Delivery]] = [[] for _ in days]
    for camera, paths in frames.items():
        for night, some in enumerate(np.array_split(np.arange(len(paths)), len(days))):
            for number in some.tolist():
                path = paths[number]
                taken = datetime.combine(days[night], time(1), UTC) + timedelta(minutes=number)
                name = f"{camera}/{path.name}"
                nights[night].append(Delivery(name, path.read_bytes(), taken, "new"))
    return nights


def renamed(one: Delivery, prefix: str, kind: str) -> Delivery:
    """The same content under another name."""
    camera, _, name = one.path.partition("/")
    return replace(one, path=f"{camera}/{prefix}{name}", kind=kind)


def edited(one: Delivery, rng: random.Random, number: int) -> Delivery:
    """The same picture, a little brighter or darker and encoded anew."""
    picture = Image.open(io.BytesIO(one.content)).convert("RGB")
    file = io.BytesIO()
    brightness = rng.choice((0.85, 0.93, 1.08, 1.2))
    ImageEnhance.Brightness(picture).enhance(brightness).save(file, "JPEG", quality=80)
    return replace(renamed(one, f"edited {number} ", "edited"), content=file.getvalue())


def broken(one: Delivery) -> Delivery:
    """A file whose end never came."""
    content = one.content[: len(one.content) // 3]
    return replace(renamed(one, "broken ", "broken"), content=content)


def deliver(folder: Path, deliveries: Iterable[Delivery]) -> None:
    """Write files with the times at which they were captured."""
    for one in deliveries:
        path = folder / one.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(one.content)
        os.utime(path, (one.captured_at.timestamp(), one.captured_at.timestamp()))
