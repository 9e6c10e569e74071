"""tools/films.py: whatever opens or writes a video or image file. It imports none of the five.

    a film, whatever its frame rate -> uint8 (size, size, 3), the square
        centre of what it shows at 0, 1/fps, 2/fps ... seconds
    an image -> uint8 (1, size, size, 3), a clip of one frame
    clips uint8 (T, H, W, 3) -> an .mp4
"""
import contextlib
import itertools
import math
import tarfile
from collections import deque
from fractions import Fraction
from pathlib import Path

import av
import av.filter
import numpy as np
from PIL import Image, ImageOps

VIDEOS = {"mp4", "webm", "mov", "mkv", "avi", "gif"}
IMAGES = {"png", "jpg", "jpeg", "webp"}


def ending(path):
    return Path(path).suffix[1:].lower()


def open_media(clip):
    """{"file": path} -> the path; with "offset" and "size", as in a tar
    file -> these bytes, as a binary file."""
    if "offset" not in clip:
        return clip["file"]
    member = tarfile.TarInfo()
    member.offset_data, member.size = clip["offset"], clip["size"]
    return tarfile.open(clip["file"], "r:").extractfile(member)


def read_frames(file, fps, size, start=0):
    """Yield the square centre of what a video shows at 0, 1/fps, 2/fps ...
    seconds, uint8 (size, size, 3), counted from a frame within 1/fps of
    second `start` (in slower films: the next). file: a path or a binary file."""
    with av.open(file) as film:
        stream, graph = film.streams.video[0], av.filter.Graph()
        if start:  # to the key frame before it
            film.seek(int(start * av.time_base))
        wide = float(stream.sample_aspect_ratio or 1)  # of a pixel
        graph.link_nodes(
            graph.add_buffer(template=stream),
            graph.add("setpts", "PTS-STARTPTS"),
            graph.add("fps", f"{fps}:round=up"),  # on screen at i / fps
            graph.add("crop", f"min(iw\\,ih/{wide}):min(ih\\,iw*{wide}):exact=1"),
            graph.add("scale", f"{size}:{size}:flags=area"),
            graph.add("format", "rgb24"), graph.add("buffersink")).configure()
        for frame in itertools.chain(in_order(film.decode(stream)), [None]):
            if frame is not None:
                if frame.time + 1 / fps < start:
                    continue
                turned = frame.rotation // 90
            graph.push(frame)  # None: no more to come
            with contextlib.suppress(av.BlockingIOError, av.EOFError):
                while True:
                    yield np.rot90(graph.pull().to_ndarray(), turned)


def in_order(frames):
    """Some old files have no presentation times (pts). Where those that ffmpeg
    makes up go back, it uses decoding times (dts) from then on, and so do we."""
    last, astray = -math.inf, False
    for frame in frames:
        astray = astray or frame.pts <= last
        last = frame.pts
        if astray and frame.dts is not None:
            frame.pts = frame.dts
        yield frame


def read_clip(file, n_frames, fps, size, start=0, last=False):
    """The frames from second `start` of a video file, or the last ones:
    uint8 (n_frames, size, size, 3). Raises ValueError if there are fewer."""
    if n_frames < 1:
        raise ValueError(f"{n_frames} frames cannot be read")
    try:
        frames = read_frames(file, fps, size, start)
        clip = deque(frames if last else itertools.islice(frames, n_frames), n_frames)
    except Exception as e:  # ffmpeg raises nearly anything
        raise ValueError(f"{file} is not a readable video: {e}") from e
    if len(clip) < n_frames:
        raise ValueError(f"{file} is too short for {n_frames} frames")
    return np.stack(clip)


def read_media(clip, n_frames, fps, size, start):
    """Of an image or a video. clip: {"name": ..., "file": ...}, see `open_media`."""
    if ending(clip["name"]) in IMAGES:
        return read_image(open_media(clip), size)
    return read_clip(open_media(clip), n_frames, fps, size, start)


def read_image(file, size):
    """The square centre of an image, white where it is transparent, as a
    clip of one frame: uint8 (1, size, size, 3)."""
    picture = ImageOps.exif_transpose(Image.open(file)).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    picture = Image.alpha_composite(white, picture).convert("RGB")
    return np.array(ImageOps.fit(picture, (size, size)))[None]


def check_out(path, source=None):
    """Refuse an --out that is no .mp4, cannot be written, or is the video `source`."""
    path = Path(path)
    if path.suffix != ".mp4":
        raise ValueError("--out must end in .mp4")
    if not path.parent.is_dir():
        raise ValueError(f"--out: there is no folder {path.parent}")
    if source and path.resolve() == Path(source).resolve():
        raise ValueError(f"--out would replace {source}")


def write_video(path, clips, fps):
    """Write clips, each uint8 (T, H, W, 3), to an .mp4 of `fps` frames/s. It
    is opened at the first frame and plays while it grows, even after a crash."""
    frames, written = itertools.chain.from_iterable(clips), 0
    first = next(frames, None)
    if first is None:
        raise ValueError(f"there is no frame to write to {path}")
    options = {"movflags": "hybrid_fragmented", "frag_duration": "1000000",
               "flush_packets": "1"}
    try:
        with av.open(path, "w", options=options) as file:
            # zerolatency, or x264 would keep the last seconds to itself
            stream = file.add_stream("libx264", Fraction(fps), pix_fmt="yuv420p",
                                     thread_count=1, options={"tune": "zerolatency"})
            stream.height, stream.width = first.shape[:2]
            for frame in itertools.chain([first], frames):
                picture = av.VideoFrame.from_ndarray(frame, "rgb24")
                file.mux(stream.encode(picture))
                written += 1
            file.mux(stream.encode())
    finally:
        print(f"{written} frames -> {path}")
