"""tools/films.py: whatever opens or writes a video or image file. It imports none of the five.

    a film, whatever its frame rate -> uint8 (size, size, 3), the square
        centre of what it shows at 0, 1/fps, 2/fps ... seconds
    an image -> uint8 (1, size, size, 3), a clip of one frame
    clips uint8 (T, H, W, 3) -> an .mp4
"""
import contextlib
import functools
import itertools
import math
import operator
import tarfile
from collections import deque
from fractions import Fraction
from pathlib import Path

import av
import av.filter
import numpy as np
from av.stream import Disposition
from PIL import Image, ImageOps

VIDEOS = {"mp4", "m4v", "webm", "mov", "mkv", "avi", "gif", "mpg", "mpeg", "ts", "mts", "m2ts",
          "wmv", "flv", "3gp"}
IMAGES = {"png", "jpg", "jpeg", "webp"}
# formats of broadcasting, whose clock may jump; raw streams, whose length is a guess
UNRELIABLE = av.format.Flags.ts_discont.value | av.format.Flags.no_timestamps.value


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


class NoFilm(ValueError):
    """Why a file that ffmpeg can open is no film."""


@contextlib.contextmanager
def open_film(file):
    """A path or a binary file -> its av container and, of its streams, the one
    that ffmpeg would show. Raises NoFilm if there is none."""
    # without "file:", the name "take:2.mp4" would ask for a protocol called take
    with av.open(file if hasattr(file, "read") else f"file:{file}") as film:
        streams = [stream for stream in film.streams.video
                   if not stream.disposition & Disposition.attached_pic]  # a cover
        if not streams:
            raise NoFilm("no video in it")
        yield film, max(streams, key=lambda stream: stream.width * stream.height
                        + 5_000_000 * bool(stream.disposition & Disposition.default))


def on_screen(film, stream, start=0):
    """Yield (begin, end, picture): from when to when each picture is shown, in seconds
    after the film's first one, from a key frame before second `start` on. A picture is
    (av frame, width of a pixel, its height being 1), for a `converter`."""
    unit, rate = float(stream.time_base), stream.average_rate or stream.guessed_rate or 25
    frames = shaped(film, stream)
    head = list(itertools.islice(frames, 16))
    if not head:
        return
    # Old files have no presentation times (pts). Those that ffmpeg makes up go
    # back where frames were reordered; decoding times (dts) are merely late.
    times = [frame.pts for frame, _ in head if frame.pts is not None]
    clock = operator.attrgetter("pts" if times == sorted(times) else "dts")
    zero = clock(head[0][0])

    if start > 2 and zero is not None:
        with contextlib.suppress(av.FFmpegError):  # cannot seek: decode all of it
            # some seeks end too late, after some the first times are wrong
            for second in start - 2, max(0, start - 20), 0, -1:
                film.seek(zero + int(second / unit), stream=stream)
                frames = shaped(film, stream)
                head = list(itertools.islice(frames, 1))
                at = clock(head[0][0]) if head else None
                if at is not None and at <= zero + start / unit:
                    break

    shown, begin, end = None, 0.0, 0.0
    most = 10 if film.format.flags & UNRELIABLE else math.inf  # seconds, as in ffmpeg
    for frame, wide in itertools.chain(head, frames):
        time = clock(frame)
        now = end if None in (time, zero) else (time - zero) * unit
        if shown and not begin - 1 <= now < end + most:  # joined recordings: go on from here
            clock, now = operator.attrgetter("dts"), end
            zero = None if frame.dts is None else frame.dts - round(end / unit)
        now = max(now, begin)  # a guessed time may go back by a frame
        if shown and now > begin:
            yield begin, now, shown
        shown, begin = (frame, wide), now
        end = now + float(frame.duration * unit or 1 / rate)
    if shown:
        yield begin, end, shown


def shaped(film, stream):
    """Decode a film -> (frame, width of a pixel). Where the container does not
    say how wide pixels are, this may change with the pictures."""
    at_first = stream.codec_context.sample_aspect_ratio
    for frame in film.decode(stream):
        wide = stream.codec_context.sample_aspect_ratio
        yield frame, (stream.sample_aspect_ratio if wide == at_first else wide) or 1


def converter(*filters):
    """ffmpeg's filters -> a function: picture -> uint8 (H, W, 3), upright."""
    @functools.lru_cache(1)  # a graph knows one kind of frame, a film may change its own
    def graph_for(width, height, pix_fmt, wide, *colors):
        graph = av.filter.Graph()
        graph.link_nodes(
            graph.add("buffer", video_size=f"{width}x{height}", pix_fmt=pix_fmt, time_base="1",
                      pixel_aspect=str(wide)),
            *(graph.add(*name_and_values.split("=", 1)) for name_and_values in filters),
            graph.add("format", "rgb24"), graph.add("buffersink")).configure()
        return graph

    def convert(picture):
        frame, wide = picture
        graph = graph_for(frame.width, frame.height, frame.format.name, wide,
                          frame.colorspace, frame.color_range)
        graph.push(frame)
        return np.ascontiguousarray(upright(graph.pull().to_ndarray(), frame))
    return convert


def upright(picture, frame):
    """A picture (H, W, 3), turned and mirrored as the frame's display matrix says."""
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # beside it, there is something that pyav does not know
        return np.rot90(picture, frame.rotation // 90)
    if matrix is None:
        return picture
    to_x, to_y = np.frombuffer(matrix, np.int32).reshape(3, 3)[:2, :2].T  # from x and y
    if abs(to_x[1]) > abs(to_x[0]):
        picture, to_x, to_y = picture.swapaxes(0, 1), to_x[::-1], to_y[::-1]
    return picture[::-1 if to_y[1] < 0 else 1, ::-1 if to_x[0] < 0 else 1]


def read_frames(file, fps, size, start=0):
    """Yield the square centre of what a video shows at start, start + 1/fps,
    start + 2/fps ... seconds after its first frame: uint8 (size, size, 3)."""
    def instants(seconds):  # those before it
        return max(0, math.ceil((seconds - start) * fps - 1e-6))

    convert = converter("crop=min(iw\\,ih/sar):min(ih\\,iw*sar):exact=1",
                        f"scale={size}:{size}:flags=area")
    with open_film(file) as (film, stream):
        for begin, end, picture in on_screen(film, stream, start):
            if n := instants(end) - instants(begin):
                yield from itertools.repeat(convert(picture), n)


def duration(film, stream):
    """Seconds that the picture lasts, as the header says; else by decoding it all."""
    seconds = (stream.duration or 0) * stream.time_base
    if not seconds and len(film.streams) == 1 and not stream.start_time:
        seconds = (film.duration or 0) / av.time_base  # no sound, which may be longer
    if not seconds or film.format.flags & UNRELIABLE:
        for _, seconds, _ in on_screen(film, stream):
            pass
    return float(seconds)


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
    picture = Image.open(file)
    picture.draft("RGB", (2 * size, 2 * size))  # a JPEG need not be decoded in full
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # 16-bit gray, which Pillow would clip
        gray = np.array(picture)
        gray[gray == picture.info.get("transparency", -1)] = 65535
        picture = Image.fromarray(np.rint(gray / 257).astype(np.uint8))
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    return np.array(ImageOps.fit(picture.convert("RGB"), (size, size)))[None]


def check_out(path, source=None):
    """Refuse an --out that is no .mp4, cannot be written, or is the video `source`."""
    path = Path(path)
    if path.suffix != ".mp4":
        raise ValueError("--out must end in .mp4")
    if source and path.resolve() == Path(source).resolve():
        raise ValueError(f"--out would replace {source}")
    check_writable(path)


def check_writable(path):
    """Raise ValueError or OSError now if a file cannot be written later."""
    path = Path(path).resolve()  # of a link, the file
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent}")
    new = not path.exists()
    with open(path, "ab"):  # an OSError says why it cannot be written
        pass
    if new:
        path.unlink()


def write_video(path, clips, fps, times=None):
    """Write clips, each uint8 (T, H, W, 3), to an .mp4 of `fps` frames/s, or with
    times, an iterator of (begin, end) in seconds for each frame. It is opened at
    the first frame and plays while it grows, even after a crash."""
    frames, written = itertools.chain.from_iterable(clips), 0
    first = next(frames, None)
    if first is None:
        raise ValueError(f"there is no frame to write to {path}")
    fps = Fraction(fps)
    times = times or ((i / fps, (i + 1) / fps) for i in itertools.count())
    unit = 1 / Fraction(fps.numerator * max(1, 100_000 // fps.numerator))  # divides 1 / fps
    options = {"movflags": "hybrid_fragmented", "frag_duration": "1000000",
               "flush_packets": "1"}
    with av.open(f"file:{path}", "w", options=options) as file:
        # zerolatency, or x264 would keep the last seconds to itself
        stream = file.add_stream("libx264", fps, pix_fmt="yuv420p", thread_count=1,
                                 options={"tune": "zerolatency", "flags": "+frame_duration"})
        stream.height, stream.width = first.shape[:2]
        stream.codec_context.time_base = unit
        try:
            for frame, (begin, end) in zip(itertools.chain([first], frames), times):
                picture = av.VideoFrame.from_ndarray(frame, "rgb24")
                picture.time_base, picture.pts = unit, round(begin / unit)
                picture.duration = round(end / unit) - picture.pts
                file.mux(stream.encode(picture))
                written += 1
            file.mux(stream.encode())
        finally:
            print(f"{written} frames -> {path}")
