// runtime.js: the graphs of `python tools/export.py DIR --onnx`, computed by onnxruntime-web.

// pinned: nothing but these bytes is ever run
const CDN = "https://cdn.jsdelivr.net/npm/onnxruntime-web@1.30.0/dist/";
const HASHES = {
  "ort.wasm.bundle.min.mjs":
    "sha384-PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG",
  "ort-wasm-simd-threaded.wasm":
    "sha384-vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM",
};

async function fetched(url, integrity) {
  const answer = await fetch(url, { integrity });
  if (!answer.ok) throw Error(`${answer.status} for ${url}`);
  return new Uint8Array(await answer.arrayBuffer());
}

/** onnxruntime-web, from its CDN or from another folder. threads: where the page is isolated. */
export async function runtime(folder = CDN, threads = navigator.hardwareConcurrency) {
  const [script, wasm] = await Promise.all(
    Object.entries(HASHES).map(([name, hash]) => fetched(new URL(name, folder), hash)));
  const url = URL.createObjectURL(new Blob([script], { type: "text/javascript" }));
  const ort = await import(url);
  ort.env.wasm.wasmBinary = wasm;
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(threads, 4) : 1;
  return ort;
}

/** A folder that tools/export.py wrote -> { config, model, tokenizer }, as sample.js needs them. */
export async function load(ort, folder) {
  const file = (name) => fetched(new URL(name, folder));
  const config = JSON.parse(new TextDecoder().decode(await file("model.json")));
  const [decoder, encode, decode] = await Promise.all(
    ["decoder", "encode", "decode"].map(async (name) =>
      ort.InferenceSession.create(await file(`${name}.onnx`))));
  const { video_vocab: V, resolution: size, latent_shape: [, h, w] } = config;
  const tensor = (data, ...shape) => new ort.Tensor(data, shape);

  const model = {
    config,
    /** As Llama.next_logits: for each row, Float32Array (W * video_vocab). */
    async nextLogits(tokens, cache, W) {
      const rows = tokens.length, n = tokens[0].length;
      const given = await decoder.run({
        tokens: tensor(Int32Array.from(tokens.flatMap((row) => [...row])), rows, n),
        length: new ort.Tensor("int64", [BigInt(cache.length)], []),
        ...Object.fromEntries(Object.entries(cache.past).map(([name, data]) =>
          [name, tensor(data, rows, cache.heads, cache.size, cache.dim)])),
      });
      cache.append(given, n);
      return tokens.map((_, i) =>
        given.logits.data.subarray(((i + 1) * n - W) * V, (i + 1) * n * V));
    },
  };

  const tokenizer = {
    /** RGBA (T * H * W * 4) -> tokens, Int32Array (t * h * w). */
    async encode(pixels) {
      const n = pixels.length / 4, video = new Float32Array(3 * n);
      for (let i = 0; i < n; i++) {
        for (let c = 0; c < 3; c++) video[c * n + i] = Math.fround(pixels[4 * i + c] / 127.5) - 1;
      }
      const given = await encode.run({ video: tensor(video, 1, 3, n / size ** 2, size, size) });
      return given.tokens.data;
    },
    /** tokens (t * h * w) -> RGBA, Uint8ClampedArray (T * H * W * 4). */
    async decode(tokens) {
      const given = await decode.run({ tokens: tensor(tokens, 1, tokens.length / h / w, h, w) });
      const video = given.video.data, n = video.length / 3;
      const pixels = new Uint8ClampedArray(4 * n).fill(255);
      for (let i = 0; i < n; i++) {
        for (let c = 0; c < 3; c++) {
          pixels[4 * i + c] = Math.fround(Math.fround(video[c * n + i] + 1) * 127.5);
        }
      }
      return pixels;
    },
  };
  return { config, model, tokenizer };
}
