// save.js: frames -> a WebM file, by WebCodecs and the few EBML elements that a player asks for.

const number = (x, n) => Uint8Array.from({ length: n }, (_, i) => x / 256 ** (n - 1 - i));
const ascii = (text) => new TextEncoder().encode(text);
const float = (x) => new Uint8Array(new Float64Array([x]).buffer).reverse();

/** An EBML element: its id in hexadecimal, its length in eight bytes, its content. */
function element(id, ...content) {
  const length = content.reduce((sum, part) => sum + part.length, 0);
  const name = Uint8Array.from(id.match(/../g), (pair) => parseInt(pair, 16));
  const all = new Uint8Array(name.length + 8 + length);
  all.set(name);
  all.set([1, ...number(length, 7)], name.length);
  let at = name.length + 8;
  for (const part of content) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

/** Frames, RGBA (size * size * 4) each, with sharp pixels `scale` times as large -> a Blob. */
export async function toWebM(frames, size, fps, scale = 4) {
  const side = size * scale, clusters = [];
  let failed = null, began = 0;
  const encoder = new VideoEncoder({
    error: (e) => { failed = e; },
    output(chunk) {
      const key = chunk.type === "key", time = Math.round(chunk.timestamp / 1000);
      if (key) {
        began = time;
        clusters.push([element("e7", number(time, 4))]);
      }
      const data = new Uint8Array(chunk.byteLength);
      chunk.copyTo(data);
      const header = [0x81, ...number(time - began, 2), key ? 0x80 : 0]; // track 1
      clusters.at(-1).push(element("a3", header, data));
    },
  });
  encoder.configure({ codec: "vp8", width: side, height: side, bitrate: 2e6, framerate: fps });

  const small = new OffscreenCanvas(size, size), large = new OffscreenCanvas(side, side);
  const context = large.getContext("2d");
  context.imageSmoothingEnabled = false;
  for (const [i, pixels] of frames.entries()) {
    small.getContext("2d").putImageData(new ImageData(pixels, size, size), 0, 0);
    context.drawImage(small, 0, 0, side, side);
    const frame = new VideoFrame(large, { timestamp: 1e6 * i / fps, duration: 1e6 / fps });
    encoder.encode(frame, { keyFrame: i % 65 === 0 });
    frame.close();
  }
  await encoder.flush();
  encoder.close();
  if (failed) throw failed;

  const header = element("1a45dfa3", element("4282", ascii("webm")),
    element("4287", [2]), element("4285", [2]));
  const info = element("1549a966", element("2ad7b1", number(1e6, 4)), // times in milliseconds
    element("4489", float(1000 * frames.length / fps)),
    element("4d80", ascii("Loong")), element("5741", ascii("Loong")));
  const picture = element("e0", element("b0", number(side, 2)), element("ba", number(side, 2)));
  const track = element("ae", element("d7", [1]), element("73c5", [1]), element("83", [1]),
    element("86", ascii("V_VP8")), picture);
  const segment = element("18538067", info, element("1654ae6b", track),
    ...clusters.map((blocks) => element("1f43b675", ...blocks)));
  return new Blob([header, segment], { type: "video/webm" });
}
