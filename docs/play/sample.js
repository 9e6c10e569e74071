// sample.js: prompt -> video without end, in a browser (Sec. 3.3, Sec. 4.1 "Inference").
//
// sample.py once more, with its names and in its order, for one video at a time. Three graphs
// are computed by onnxruntime-web (runtime.js), all else is here:
//
//     guided = uncond + scale * (cond - uncond)
//     next   ~ softmax(top_k(guided / temperature))
//
// The next clip goes on from the last frames of this one, encoded anew as at the start of a clip.

export const FPS = 6.5; // 65 frames cover 10 s (Sec. 3.1)
export const CONTEXT = 5; // the last 5 frames condition the next clip (Sec. 4.1)
const WINDOW = 12; // guesses per pass, where each costs about the same

// ---- ten seconds: feed, guide, top-k, draw, append ----

/**
 * Feed the ids `tokens`, one list per row: [cond] or, with guidance, [cond, uncond]. -> the codes
 * that follow the last W of them, W values of 0 ... video_vocab - 1. noise (W * video_vocab) is
 * from Exp(1), so argmax(p / noise) is a draw from p. A code is forbidden if, with the caption,
 * its p is below `floor` times the best one's.
 */
export async function nextCodes(model, tokens, cache, noise, sampling) {
  const { cfg_scale, top_k, temperature, floor } = sampling;
  const V = model.config.video_vocab, W = noise.length / V;
  const logits = await model.nextLogits(tokens, cache, W); // for each row (W * video_vocab)
  const guided = new Float32Array(V), codes = new Int32Array(W);
  for (let place = 0; place < W; place++) {
    const at = place * V;
    const [cond, uncond] = logits.map((row) => row.subarray(at, at + V));
    const likely = max(cond) + Math.log(floor);
    for (let i = 0; i < V; i++) {
      guided[i] = uncond ? uncond[i] + cfg_scale * (cond[i] - uncond[i]) : cond[i];
      if (cond[i] < likely) guided[i] = -Infinity;
    }
    const sorted = guided.slice().sort();
    const best = sorted[V - 1], least = sorted[V - Math.min(top_k, V)];
    let first = -1;
    for (let i = 0; i < V; i++) {
      if (guided[i] < least) continue;
      const race = Math.exp((guided[i] - best) / temperature) / noise[at + i];
      if (race > first) [first, codes[place]] = [race, i];
    }
  }
  return codes;
}

const max = (row) => row.reduce((a, b) => (a > b ? a : b));

/**
 * A generator of numbers between 0 and 1, both excluded: xoshiro128** by Blackman and Vigna
 * (prng.di.unimi.it), whose state is four numbers of splitmix32. The same seed gives the same
 * numbers in every browser.
 */
export function generator(seed) {
  const state = Uint32Array.from({ length: 4 }, () => {
    seed = (seed + 0x9e3779b9) | 0;
    let z = Math.imul(seed ^ (seed >>> 16), 0x21f0aaad);
    z = Math.imul(z ^ (z >>> 15), 0x735a2d97);
    return z ^ (z >>> 15);
  });
  const turn = (x, k) => (x << k) | (x >>> (32 - k));
  return () => {
    const drawn = Math.imul(turn(Math.imul(state[1], 5), 7), 9) >>> 0;
    const shifted = state[1] << 9;
    state[2] ^= state[0];
    state[3] ^= state[1];
    state[1] ^= state[2];
    state[0] ^= state[3];
    state[2] ^= shifted;
    state[3] = turn(state[3], 11);
    return (drawn + 0.5) / 2 ** 32;
  };
}

/** Exp(1) for each token and code: float32 (n * video_vocab). */
export function drawNoise(n, config, random) {
  const noise = new Float32Array(n * config.video_vocab);
  for (let i = 0; i < noise.length; i++) noise[i] = -Math.log(random());
  return noise;
}

// ---- minutes: token re-encoding ----

/**
 * Write a video clip by clip, without end. -> pixels RGBA, a Uint8ClampedArray (T * H * W * 4):
 * 65 frames, then 60 each, or what the context leaves.
 *
 * start: pixels to go on from, or null. context: how many of the last frames condition the next
 * clip, 1 + 4k. reencode false goes on from the old tokens (Fig. 6). noise: instead of what the
 * seed gives, for each clip (n, clip) -> (n * video_vocab). watch(codes, right): called and
 * awaited at the start of a clip and after each pass, with all codes of the clip and where those
 * begin that were guessed right. sampling: cfg_scale, top_k, temperature, floor.
 */
export async function* generate(model, tokenizer, text, prompt, options) {
  const { seed = 0, start = null, context = CONTEXT, reencode = true, watch, window } = options;
  const config = model.config, [longest, h, w] = config.latent_shape;
  const sampling = { ...config.sampling, ...options.sampling };
  const random = generator(seed);
  const noise = options.noise ?? ((n) => drawNoise(n, config, random));
  const caption = prefixTokens(config, text.encode(prompt));
  const frame = 4 * config.resolution ** 2; // values of a frame

  // of the next clip: tokens that are `known`, frames that were `shown`, such as 2 and 5
  let known = new Int32Array(0), shown = 0;
  if (start?.length) {
    shown = 1 + 4 * Math.floor((Math.min(start.length / frame, context) - 1) / 4);
    known = await tokenizer.encode(start.subarray(-shown * frame));
  }
  for (let clip = 0; ; clip++) {
    const n = longest * h * w - known.length;
    const prefix = [...caption, ...Array.from(known, (code) => code + config.text_vocab)];
    await watch?.(known, known.length);
    const codes = await jacobi(model, prefix, n, noise(n, clip), sampling, window, watch &&
      ((codes, right) => watch(join(known, codes), known.length + right)));
    const tokens = join(known, codes);
    const pixels = await tokenizer.decode(tokens);
    yield pixels.slice(shown * frame);
    shown = context;
    known = reencode
      ? await tokenizer.encode(pixels.subarray(-context * frame))
      : tokens.slice(-latentFrames(context) * h * w); // old tokens (Fig. 6)
  }
}

// ---- speed: guess many tokens, check them in one pass ----

/**
 * Write the next n video tokens -> codes, Int32Array (n). With the noise drawn beforehand, the
 * codes are a function of it and can be guessed. A pass over `window` guesses draws what follows
 * each. Up to the first wrong guess all that is fed is right, so these draws are what one at a
 * time (window 1) would give; those after it are better guesses for the next pass. A first guess:
 *
 *     frame before   this frame     Find the last place where a stood above
 *          a             ?          b, guess what came in a's place a frame
 *          b                        later, or else a.
 *
 * prefix: vocabulary ids, text_len + 3 + known video tokens. watch(codes, right): see `generate`.
 */
export async function jacobi(model, prefix, n, noise, sampling, window = WINDOW, watch) {
  const config = model.config, V = config.video_vocab, [, h, w] = config.latent_shape;
  const P = prefix.length;
  window = Math.min(window, n);
  noise = join(noise, new Float32Array(window * V).fill(1));
  const cache = new KVCache(config, sampling.cfg_scale === 1 ? 1 : 2);
  // the prefix, and room for the codes and for guesses beyond the end
  const ids = new Int32Array(P + n + window).fill(config.text_vocab);
  ids.set(prefix);
  const before = (place) => Math.max(place - h * w, 0); // the same place in the frame before
  const pair = (place) => ids[before(place)] * 1e6 + ids[before(place) + w]; // ids are smaller
  let done = 0, fresh = window;
  while (done < n) {
    const end = P + done + window;
    for (let place = end - fresh; place < end; place++) {
      let last = P + done - 1;
      while (last > 0 && pair(last) !== pair(place)) last--;
      ids[place] = ids[last > 0 ? last : before(place)];
    }
    const tokens = Array(cache.rows).fill(ids.slice(cache.length, end - 1));
    if (!done && cache.rows === 2) tokens[1] = withoutCaption(tokens[1], config);
    const here = noise.subarray(done * V, (done + window) * V);
    const drawn = await nextCodes(model, tokens, cache, here, sampling);
    const right = drawn.findIndex((code, i) => code + config.text_vocab !== ids[P + done + i]);
    fresh = Math.min(right < 0 ? window : right + 1, n - done);
    ids.set(drawn.map((code) => code + config.text_vocab), P + done);
    const guessed = done;
    done += fresh;
    cache.length = P + done - 1; // the last code was not fed yet; the rest is written over
    await watch?.(ids.subarray(P, P + done).map((id) => id - config.text_vocab), guessed);
  }
  return ids.slice(P, P + n).map((id) => id - config.text_vocab);
}

/** The keys and values of the ids fed so far, as in model.py, with room for a multiple of 128. */
class KVCache {
  constructor(config, rows) {
    Object.assign(this, { rows, length: 0, size: 0, heads: config.n_heads });
    this.dim = config.dim / config.n_heads; // of a head
    const names = (x) => Array.from({ length: config.n_layers }, (_, i) => x + i);
    this.past = Object.fromEntries([...names("k"), ...names("v")].map((name) => [name, []]));
    this.grow(128);
  }

  /** Write what a pass gave for n ids, {new_k0: (rows, heads, n, dim), ...}, after the others. */
  append(given, n) {
    if (this.length + n > this.size) this.grow(Math.ceil((this.length + n) / 128) * 128);
    for (const name in this.past) {
      this.copy(given["new_" + name].data, n, this.past[name], this.size, this.length, n);
    }
  }

  grow(size) {
    for (const name in this.past) {
      const larger = new Float32Array(this.rows * this.heads * size * this.dim);
      this.copy(this.past[name], this.size, larger, size, 0, this.length);
      this.past[name] = larger;
    }
    this.size = size;
  }

  /** Copy the first n ids of each row and head, from room for `a` to room for `b`, from `at` on. */
  copy(from, a, to, b, at, n) {
    for (let i = 0; i < this.rows * this.heads; i++) {
      const part = from.slice(i * a * this.dim, (i * a + n) * this.dim);
      to.set(part, (i * b + at) * this.dim);
    }
  }
}

// ---- plumbing: frames, text ----

/** How many latent frames hold these frames: 1, 17, 65 -> 1, 5, 17. */
export const latentFrames = (frames) => 1 + Math.floor((frames + 2) / 4);

const join = (a, b) => {
  const both = new a.constructor(a.length + b.length);
  both.set(a);
  both.set(b, a.length);
  return both;
};

/** <sot> text <pad>... <eot> <soi>, as in model.py. */
export function prefixTokens(config, text) {
  const pad = config.text_vocab + config.video_vocab, [sot, eot, soi] = [pad + 1, pad + 2, pad + 3];
  const padded = [...text, ...Array(config.text_len).fill(pad)].slice(0, config.text_len);
  return [sot, ...padded, eot, soi];
}

function withoutCaption(ids, config) {
  const empty = ids.slice();
  empty.set(prefixTokens(config, []));
  return empty;
}

/** Captions -> ids, as in data.py: bytes, and words by byte pair encoding. */
export class TextTokenizer {
  constructor(words) {
    this.ranks = new Map(words.map((word, i) => [word, 256 + i]));
  }

  encode(caption) {
    const pieces = [...caption].slice(0, 4096).join("").match(/ [a-z]+|[^]/gu) ?? [];
    return pieces.flatMap((piece) => this.merge(piece));
  }

  merge(piece) {
    if (this.ranks.has(piece)) return [this.ranks.get(piece)];
    const bytes = new TextEncoder().encode(piece);
    const parts = Array.from(bytes, (byte) => String.fromCharCode(byte));
    for (;;) { // join the two neighbours whose word comes first
      const ranks = parts.slice(1).map((b, i) => this.ranks.get(parts[i] + b) ?? Infinity);
      const i = ranks.indexOf(Math.min(...ranks));
      if (i < 0 || ranks[i] === Infinity) break;
      parts.splice(i, 2, parts[i] + parts[i + 1]);
    }
    return parts.map((part) => this.ranks.get(part) ?? part.charCodeAt(0));
  }
}
